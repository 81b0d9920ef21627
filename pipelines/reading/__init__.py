"""Read the bytes of a file into records of text."""
