"""Alarms over the metrics of a run: signs of training without learning, and of leaving another run's curve."""
