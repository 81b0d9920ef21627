"""The indexed Job that runs a stage's ranks on Kubernetes: its manifest, the API, states in words, logs."""
