"""Trials of fine-tuning: planning, parallel execution, and comparison."""
