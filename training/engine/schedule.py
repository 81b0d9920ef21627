"""Learning-rate schedules, as functions of the step alone, so that a resumed run needs no state of them."""

from __future__ import annotations

import math

from training.settings.optimization import Schedule

WSD_DECAY_SHARE = 0.1
"""Share of the steps in which warm-up-stable-decay lowers the rate (Hu et al., 2024, section 4.3)."""


def learning_rate_at(
    step: int,
    learning_rate: float,
    num_warmup_steps: int,
    num_train_steps: int,
    schedule: Schedule = "linear",
    num_decay_steps: int | None = None,
) -> float:
    """Learning rate of the update that follows `step` finished ones; all schedules rise linearly from 0 in warm-up.

    linear: to 0, counted from step 0 and not from the end of warm-up, so the rate drops by num_warmup_steps /
    num_train_steps when warm-up ends (released code, optimization.py, create_optimizer).
    cosine: half a wave from the end of warm-up to 0 (Loshchilov & Hutter, 2017, eq. 5, without restarts).
    warmup_stable_decay: constant, then linearly to 0 in the last `num_decay_steps` (Hu et al., 2024, section 4.2).
    """
    if step < num_warmup_steps:
        return learning_rate * step / num_warmup_steps
    step = min(step, num_train_steps)
    if schedule == "linear":
        return learning_rate * (1.0 - step / num_train_steps)
    if schedule == "cosine":
        done = (step - num_warmup_steps) / max(1, num_train_steps - num_warmup_steps)
        return learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
    if num_decay_steps is None:
        num_decay_steps = max(1, round(WSD_DECAY_SHARE * num_train_steps))
    return learning_rate * min(1.0, (num_train_steps - step) / num_decay_steps)
