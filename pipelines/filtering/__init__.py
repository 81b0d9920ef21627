"""Decide which texts stay: quality rules, and overlap with the data that models are evaluated on."""
