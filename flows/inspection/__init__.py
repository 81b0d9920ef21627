"""What is asked without running anything: progress, cost, the machine."""
