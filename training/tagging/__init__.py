"""Sequence tagging: CoNLL column files, span labels, and BERT with a classifier on each word's first sub-token."""
