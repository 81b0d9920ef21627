"""Everything that knows DeepSpeed: processes, precision, optimizers, a training step."""
