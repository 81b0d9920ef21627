"""How a Beam job runs: runner, workers, files, errors."""
