"""What a flow is given: a checked recipe, and the forms on Prefect's page."""
