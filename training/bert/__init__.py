"""The BERT model on packed sequences, its heads, its arithmetic, and its Hugging Face form."""
