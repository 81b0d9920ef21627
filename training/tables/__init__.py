"""Tables with the user's own labels: CSV, TSV, JSON lines, Parquet, and directories of `datasets`."""
