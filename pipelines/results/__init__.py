"""How the result of a stage is built, locked, exchanged, kept and verified."""
