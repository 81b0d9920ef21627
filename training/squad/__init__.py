"""SQuAD 1.1 and 2.0: reading, windows with a stride, answers by n-best, the official scores, and the head."""
