"""The fine-tuning loop, text encoding, and metrics."""
