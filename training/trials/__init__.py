"""Trials of fine-tuning: planned, run next to each other, and compared."""
