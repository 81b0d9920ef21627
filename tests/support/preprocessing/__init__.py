"""Corpora, recipes and slow references for the tests of preprocessing."""
