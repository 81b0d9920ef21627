"""Queries that run nothing: progress, cost, the machine."""
