"""GLUE: one table of tasks, readers of its TSV files, its metrics, and a word-order task in CoLA's form."""
