"""One reader per input format, all behind the same interface."""
