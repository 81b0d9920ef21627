"""How a flow runs its stages: plan, child processes, progress, failures."""
