"""Learning-rate schedules as functions of the step alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.settings.optimization import ScheduleKind
from training.settings.pretraining import PretrainingConfig, wsd_decay_steps


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step of a run; all kinds rise linearly from 0 during warm-up.

    linear: to 0, counted from step 0 and not from the end of warm-up, so the rate drops by num_warmup_steps /
    num_train_steps when warm-up ends (released code, optimization.py, create_optimizer).
    cosine: half a wave from the end of warm-up to 0 (Loshchilov & Hutter, 2017, eq. 5, without restarts).
    warmup_stable_decay: constant, then linearly to 0 in the last `num_decay_steps` (Hu et al., 2024, section 4.2).
    """

    learning_rate: float
    num_warmup_steps: int
    num_train_steps: int
    kind: ScheduleKind = "linear"
    num_decay_steps: int | None = None
    """None is a tenth of all steps."""

    @staticmethod
    def of(config: PretrainingConfig) -> Schedule:
        """The schedule of a recipe's section, one over all phases."""
        return Schedule(
            config.learning_rate,
            config.num_warmup_steps,
            config.num_train_steps,
            config.schedule,
            config.num_decay_steps,
        )

    def rate_at(self, step: int) -> float:
        """Learning rate of the update that follows `step` finished ones."""
        if step < self.num_warmup_steps:
            return self.learning_rate * step / self.num_warmup_steps
        step = min(step, self.num_train_steps)
        if self.kind == "linear":
            return self.learning_rate * (1.0 - step / self.num_train_steps)
        if self.kind == "cosine":
            done = (step - self.num_warmup_steps) / max(1, self.num_train_steps - self.num_warmup_steps)
            return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
        num_decay_steps = wsd_decay_steps(self.num_train_steps, self.num_decay_steps)
        return self.learning_rate * min(1.0, (self.num_train_steps - step) / num_decay_steps)
