"""Local Prefect and MLflow servers, and their databases in a workspace."""
