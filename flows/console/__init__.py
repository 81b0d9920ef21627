"""Console output of a flow: narration, tables, names of runs."""
