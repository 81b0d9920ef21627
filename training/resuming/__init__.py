"""Fault tolerance of long runs: checkpoints, progress, recovery, orderly shutdown."""
