"""The recipe sections of preprocessing."""
