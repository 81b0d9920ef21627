"""The fine-tuning loop and text encoding."""
