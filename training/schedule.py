"""Learning-rate schedule of the released code (optimization.py, create_optimizer)."""

from __future__ import annotations


def learning_rate_at(step: int, learning_rate: float, num_warmup_steps: int, num_train_steps: int) -> float:
    """Learning rate of the update that follows `step` finished ones.

    Linear warm-up from 0, then linear decay to 0. The decay counts from step 0, not from the end of warm-up, so the
    rate drops by num_warmup_steps / num_train_steps when warm-up ends.
    """
    if step < num_warmup_steps:
        return learning_rate * step / num_warmup_steps
    return learning_rate * (1.0 - min(step, num_train_steps) / num_train_steps)
