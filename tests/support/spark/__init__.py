"""Spark and Flink for tests: job servers of Beam and standalone clusters, in a network of their own."""
