"""How often examples read the documents of each source, so that the sources have the shares of tokens asked for."""
