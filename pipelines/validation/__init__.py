"""The checks of `pipelines.validate`."""
