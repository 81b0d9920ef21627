"""Parameters of a flow: a checked recipe, and the forms on Prefect's page."""
