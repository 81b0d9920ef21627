"""A real S3 server on loopback, and faults between it and its clients."""
