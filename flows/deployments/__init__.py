"""Deployments on a Prefect server: their form, and the edits that users make on the page."""
