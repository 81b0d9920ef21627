"""Alarms: signs of a run that trains without learning, each with its usual causes.

Pure rules over the metrics of the progress line. An alarm is raised once, and again only after its sign has
disappeared. Each objective has a subclass with its own rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from pipelines.statistics.metrics import Metric

HELDOUT_OBSERVATIONS = 3
HELDOUT_RISE = 1.02
SLOW_OBSERVATIONS = 3
SPEED_MEMORY = 50


class Alarms:
    """Watches the metrics of a run, a line at a time."""

    def __init__(self, heldout_loss: Metric) -> None:
        """`heldout_loss`: the metric that must decrease between evaluations."""
        self._heldout_loss = heldout_loss
        self._given: set[str] = set()
        self._heldout_best, self._heldout_worse = math.inf, 0
        self._speeds: list[float] = []
        self._slow = 0

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Check the metrics of one progress line and return new alarms."""
        return self._new(self.rules(step, metrics))

    def rules(self, _step: int, metrics: Mapping[str, float]) -> dict[str, str]:
        """All rules: alarm -> its message, empty if there is no sign."""
        return {"speed": self._is_slow(metrics)}

    def observe_heldout(self, metrics: Mapping[str, float]) -> list[str]:
        """Check the result of a held-out evaluation, always at the same length."""
        loss = metrics.get(self._heldout_loss.name)
        if loss is None:
            return []
        self._heldout_worse = self._heldout_worse + 1 if loss > HELDOUT_RISE * self._heldout_best else 0
        self._heldout_best = min(self._heldout_best, loss)
        line = (
            f"held-out {self._heldout_loss.label} has been above its best ({self._heldout_best:.3f}) in "
            f"{self._heldout_worse} evaluations in a row: the model overfits the training text; use more text, "
            "fewer steps, or masking = 'dynamic'"
        )
        return self._new({"heldout": line if self._heldout_worse >= HELDOUT_OBSERVATIONS else ""})

    def _new(self, rules: Mapping[str, str]) -> list[str]:
        new = [words for name, words in rules.items() if words and name not in self._given]
        self._given -= {name for name, words in rules.items() if not words}
        self._given |= {name for name, words in rules.items() if words}
        return new

    def _is_slow(self, metrics: Mapping[str, float]) -> str:
        speed = metrics.get("tokens_per_second")
        if speed is None:
            return ""
        usual = median(self._speeds) if self._speeds else speed
        self._slow = self._slow + 1 if speed < usual / 2 else 0
        if not self._slow:
            self._speeds = [*self._speeds[1 - SPEED_MEMORY :], speed]
        if self._slow < SLOW_OBSERVATIONS:
            return ""
        return (
            f"{speed:,.0f} tokens/s, where {usual:,.0f} were usual: another process may share the device, the disk may "
            "be too slow, or the device throttles"
        )
