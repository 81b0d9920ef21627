"""Metrics of a run, in files and in MLflow."""
