"""The tokenizers of Hugging Face directories: read, written, and compared."""
