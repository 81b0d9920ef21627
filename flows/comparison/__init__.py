"""Studies: variants of one recipe, trained on the same data with the same seeds, and compared."""
