"""What survives a kill: checkpoints, progress, recovery, an orderly end."""
