"""Start of a stage's ranks: on this machine, or on the nodes of a cluster."""
