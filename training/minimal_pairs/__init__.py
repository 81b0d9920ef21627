"""Minimal pairs: reading them, scoring sentences by pseudo-log-likelihood, and accuracies with standard errors."""
