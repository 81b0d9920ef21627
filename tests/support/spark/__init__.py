"""Spark for tests: a job server of Beam, and a standalone cluster, in a network of their own."""
