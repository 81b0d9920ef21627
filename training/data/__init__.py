"""From Arrow files of examples to packed batches, in a reproducible order."""
