"""The training loop with its objectives and alarms, and the objective of BERT."""
