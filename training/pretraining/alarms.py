"""Alarms in words: signs of a run that goes on without learning, each with its usual causes.

Pure rules over what the progress line shows. An alarm is given once, and again only after the sign had gone. Those of
one objective are a subclass next to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from pipelines.contract.statistics import Metric

HELDOUT_OBSERVATIONS = 3
HELDOUT_RISE = 1.02
SLOW_OBSERVATIONS = 3
SPEED_MEMORY = 50


class Alarms:
    """Watches the metrics of a run, a line at a time."""

    def __init__(self, heldout_loss: Metric) -> None:
        """`heldout_loss`: what has to fall from evaluation to evaluation."""
        self._heldout_loss = heldout_loss
        self._given: set[str] = set()
        self._heldout_best, self._heldout_worse = math.inf, 0
        self._speeds: list[float] = []
        self._slow = 0

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Look at the metrics of one progress line and return the alarms that are new."""
        return self._new(self.rules(step, metrics))

    def rules(self, _step: int, metrics: Mapping[str, float]) -> dict[str, str]:
        """All rules: alarm -> its words, empty where there is no sign."""
        return {"speed": self._is_slow(metrics)}

    def observe_heldout(self, metrics: Mapping[str, float]) -> list[str]:
        """Look at the result of a held-out evaluation, always of the same length."""
        loss = metrics[self._heldout_loss.name]
        self._heldout_worse = self._heldout_worse + 1 if loss > HELDOUT_RISE * self._heldout_best else 0
        self._heldout_best = min(self._heldout_best, loss)
        line = (
            f"held-out {self._heldout_loss.label} has been above its best ({self._heldout_best:.3f}) in "
            f"{self._heldout_worse} evaluations in a row: the model learns the training text by heart; give it more "
            "text, fewer steps, or masking = 'dynamic'"
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
            "not keep up, or the device is hot"
        )
