"""MLflow runs of a flow and its stages."""
