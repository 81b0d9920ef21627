"""Decides what to do about a step whose loss or gradient is not finite, or whose loss spikes; pure functions.

Such a step is counted. One with non-finite values changes no weight (the engine ensures this on every rank); a spike
does, because a single one is common and harmless. Several bad steps in a row point to the weights or the data: the
run returns to its last checkpoint and continues after the offending data, as PaLM did (Chowdhery et al. 2022,
section 5.1), and after several such returns it gives up.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

WINDOW_STEPS = 128
"""Number of accepted losses that a spike is measured against."""
MIN_STEPS = 32
"""Fewer losses are not enough to estimate the usual spread."""
_MAD_OF_NORMAL = 1.4826
"""Standard deviations in one median absolute deviation of a normal distribution."""
_LEAST_SPREAD = 0.01
"""Lower bound of the spread, as a share of the median: avoids false alarms on a nearly constant loss."""


class Verdict(Enum):
    """Outcome of a step."""

    ACCEPT = "accept"
    SKIP = "skip"
    """Values are not finite; no weight has changed."""
    SPIKE = "spike"
    """The update is kept, the step is counted."""
    ROLL_BACK = "roll back"
    STOP = "stop"


@dataclass(frozen=True)
class Limits:
    """Limits for recovery.

    max_bad_steps: bad steps in a row that trigger a return to a checkpoint. loss_spike_deviations: distance of a spike
    from the median of recent losses, in robust standard deviations; 0 disables it. max_rollbacks: returns before
    giving up. With scaled gradients (fp16), overflow with a finite loss is the search for a scale, not a bad step.
    """

    max_bad_steps: int
    loss_spike_deviations: float
    max_rollbacks: int
    gradients_are_scaled: bool = False


@dataclass(frozen=True)
class Health:
    """State of the decisions, stored in every checkpoint, so that a resumed run decides as the first one did."""

    skipped_steps: int = 0
    loss_spikes: int = 0
    rollbacks: int = 0
    bad_steps_in_a_row: int = 0
    recent_losses: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Health:
        return cls(**{**values, "recent_losses": tuple(values["recent_losses"])})

    def for_next_phase(self) -> Health:
        """Forget recent losses: another length has another level of loss."""
        return replace(self, recent_losses=())

    def returned_to(self, checkpoint: Health) -> Health:
        """The state after a return to a checkpoint: the checkpoint's, with all events counted so far."""
        return Health(self.skipped_steps, self.loss_spikes, self.rollbacks + 1, 0, checkpoint.recent_losses)

    def events(self) -> dict[str, float]:
        """Counts for the metrics; empty if there were none."""
        counts = {
            "skipped_steps": float(self.skipped_steps),
            "loss_spikes": float(self.loss_spikes),
            "rollbacks": float(self.rollbacks),
        }
        return counts if any(counts.values()) else {}


def judge(health: Health, loss: float, was_updated: bool, limits: Limits) -> tuple[Health, Verdict]:
    """Judge one step by values that are identical on every rank.

    Args:
        health: before the step.
        loss: of the global batch.
        was_updated: whether the optimizer changed the weights.
    """
    finite = math.isfinite(loss)
    if not was_updated and finite and limits.gradients_are_scaled:
        return replace(health, skipped_steps=health.skipped_steps + 1), Verdict.SKIP
    if finite and was_updated:
        if not _is_spike(health.recent_losses, loss, limits.loss_spike_deviations):
            recent = (*health.recent_losses, loss)[-WINDOW_STEPS:]
            return replace(health, bad_steps_in_a_row=0, recent_losses=recent), Verdict.ACCEPT
        verdict = Verdict.SPIKE
        health = replace(health, loss_spikes=health.loss_spikes + 1)
    else:
        verdict = Verdict.SKIP
        health = replace(health, skipped_steps=health.skipped_steps + 1)
    health = replace(health, bad_steps_in_a_row=health.bad_steps_in_a_row + 1)
    if health.bad_steps_in_a_row >= limits.max_bad_steps:
        verdict = Verdict.STOP if health.rollbacks >= limits.max_rollbacks else Verdict.ROLL_BACK
    return health, verdict


def _is_spike(recent: tuple[float, ...], loss: float, deviations: float) -> bool:
    if not deviations or len(recent) < MIN_STEPS:
        return False
    median = statistics.median(recent)
    spread = _MAD_OF_NORMAL * statistics.median(abs(value - median) for value in recent)
    return loss > median + deviations * max(spread, _LEAST_SPREAD * abs(median))
