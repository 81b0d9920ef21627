"""The BERT model on packed sequences, its losses, its arithmetic, and its Hugging Face form."""
