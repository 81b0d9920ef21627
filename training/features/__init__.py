"""Hidden states as features, and linear probes on them."""
