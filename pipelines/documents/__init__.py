"""Job 1: records of text become documents in shards."""
