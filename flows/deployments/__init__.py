"""Deployments on a Prefect server: their form, and what people changed on it."""
