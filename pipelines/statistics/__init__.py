"""What the manifests of the stages state about their results: one typed model per stage, and the metrics."""
