"""Job 2, and the tokenizer: word counts, the WordPiece vocabulary, token ids."""
