"""Registration of a stage's models in MLflow, and their promotion to `@champion`."""
