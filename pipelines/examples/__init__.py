"""Job 3: documents become rows of masked next-sentence pairs."""
