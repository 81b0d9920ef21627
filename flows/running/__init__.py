"""Execution of a flow's stages: plan, child processes, progress, failures."""
