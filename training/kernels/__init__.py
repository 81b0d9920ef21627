"""What takes most of the time: attention over packed sequences, dropout, and the loss over the vocabulary."""
