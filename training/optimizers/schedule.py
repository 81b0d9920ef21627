"""Learning-rate schedules as functions of the step alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.settings.optimization import ScheduleKind
from training.settings.pretraining import DEFAULT_WARMUP_PROPORTION, WSD_DECAY_SHARE, PretrainingConfig, wsd_decay_steps


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step of a run; all kinds rise linearly from 0 during warm-up.

    Where the phases are by epochs, tokens or hours, these take the place of steps.

    linear: to 0, counted from step 0 and not from the end of warm-up, so the rate drops by num_warmup_steps /
    num_train_steps when warm-up ends (released code, optimization.py, create_optimizer).
    cosine: half a wave from the end of warm-up to 0 (Loshchilov & Hutter, 2017, eq. 5, without restarts).
    warmup_stable_decay: constant, then linearly to 0 in the last `num_decay_steps` (Hu et al., 2024, section 4.2).
    """

    learning_rate: float
    num_warmup_steps: float
    num_train_steps: float
    kind: ScheduleKind = "linear"
    num_decay_steps: float | None = None
    """None is a tenth of all steps."""

    @staticmethod
    def of(config: PretrainingConfig) -> Schedule:
        """The schedule of a recipe's section, one over all phases."""
        if config.num_train_steps is not None:
            warmup, total, decay = config.num_warmup_steps, config.num_train_steps, config.num_decay_steps
            return Schedule(config.learning_rate, warmup, total, config.schedule, decay)
        amount = sum(phase.amount for phase in config.phases)
        shares = (config.warmup_proportion, DEFAULT_WARMUP_PROPORTION), (config.decay_proportion, WSD_DECAY_SHARE)
        warmup_amount, decay_amount = (amount * (default if share is None else share) for share, default in shares)
        return Schedule(config.learning_rate, warmup_amount, amount, config.schedule, decay_amount)

    @property
    def warmup_share(self) -> float:
        """Share of the run in which the rate rises."""
        return self.num_warmup_steps / self.num_train_steps

    def rate_at(self, step: float) -> float:
        """Learning rate of the update that follows `step` finished ones, or this amount (`Budget.done`)."""
        if step < self.num_warmup_steps:
            return self.learning_rate * step / self.num_warmup_steps
        step = min(step, self.num_train_steps)
        if self.kind == "linear":
            return self.learning_rate * (1.0 - step / self.num_train_steps)
        if self.kind == "cosine":
            done = (step - self.num_warmup_steps) / (self.num_train_steps - self.num_warmup_steps)
            return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
        num_decay_steps = self.num_decay_steps or wsd_decay_steps(int(self.num_train_steps), None)
        return self.learning_rate * min(1.0, (self.num_train_steps - step) / num_decay_steps)
