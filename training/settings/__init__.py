"""The recipe sections of training; light to import, without torch."""
