"""Parts of the benchmark `cluster`: each measures one cost of several machines, on loopback."""
