"""What a flow prints: narration, tables, names of runs."""
