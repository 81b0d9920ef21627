"""The loop of fine-tuning, and the text that it learns from."""
