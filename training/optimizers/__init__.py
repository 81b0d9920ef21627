"""Optimizers, the learning rate over a run, and which weights decay."""
