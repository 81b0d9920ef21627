"""Alarms in words: signs of a run that goes on without learning, each with its usual causes.

Pure rules over what the progress line shows. An alarm is given once, and again only after the sign had gone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

NSP_STEPS = 2_000
NSP_TOLERANCE = 0.01
NSP_PERFECT_OBSERVATIONS = 3
MLM_STEPS = 5_000
MLM_PLATEAU = 6.0
"""Near this loss, in nats, lies a model that knows the frequencies of a 30,522-entry vocabulary and nothing else."""
MLM_PROGRESS = 0.02
POOLER_OBSERVATIONS = 3
HELDOUT_OBSERVATIONS = 3
HELDOUT_RISE = 1.02
SLOW_OBSERVATIONS = 3
SPEED_MEMORY = 50


class Alarms:
    """Watches the metrics of a run, a line at a time."""

    def __init__(self, num_warmup_steps: int) -> None:
        """`num_warmup_steps`: until they are over, a loss that stands still is no sign."""
        self._num_warmup_steps = num_warmup_steps
        self._given: set[str] = set()
        self._nsp_since: int | None = None
        self._nsp_perfect = 0
        self._mlm_best, self._mlm_step = math.inf, 0
        self._pooler_zeros = 0
        self._heldout_best, self._heldout_worse = math.inf, 0
        self._speeds: list[float] = []
        self._slow = 0

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Look at the metrics of one progress line and tell which alarms are new.

        Args:
            metrics: any of `nsp_loss`, `nsp_accuracy`, `mlm_loss`, `pooler_gradient` (largest magnitude) and
                `tokens_per_second`.
        """
        rules = {
            "nsp": self._nsp_stands(step, metrics),
            "nsp_perfect": self._nsp_is_perfect(metrics),
            "mlm": self._mlm_stands(step, metrics),
            "pooler": self._pooler_is_still(metrics),
            "speed": self._is_slow(metrics),
        }
        return self._new(rules)

    def observe_heldout(self, metrics: Mapping[str, float]) -> list[str]:
        """Look at the result of a held-out evaluation, always of the same length."""
        loss = metrics["mlm_loss"]
        self._heldout_worse = self._heldout_worse + 1 if loss > HELDOUT_RISE * self._heldout_best else 0
        self._heldout_best = min(self._heldout_best, loss)
        line = (
            f"held-out MLM loss has been above its best ({self._heldout_best:.3f}) in {self._heldout_worse} "
            "evaluations in a row: the model learns the training text by heart; give it more text, fewer steps, or "
            "masking = 'dynamic'"
        )
        return self._new({"heldout": line if self._heldout_worse >= HELDOUT_OBSERVATIONS else ""})

    def _new(self, rules: Mapping[str, str]) -> list[str]:
        """`rules`: alarm -> its words, empty where there is no sign."""
        new = [words for name, words in rules.items() if words and name not in self._given]
        self._given -= {name for name, words in rules.items() if not words}
        self._given |= {name for name, words in rules.items() if words}
        return new

    def _nsp_stands(self, step: int, metrics: Mapping[str, float]) -> str:
        if "nsp_loss" not in metrics or step <= self._num_warmup_steps:
            return ""
        if abs(metrics["nsp_loss"] - math.log(2)) > NSP_TOLERANCE:
            self._nsp_since = None
            return ""
        if self._nsp_since is None:
            self._nsp_since = step
        steps = step - self._nsp_since
        if steps < NSP_STEPS:
            return ""
        return (
            f"NSP loss has stayed at 0.69 for {steps:,} steps, which is guessing: sequences may be too short to tell "
            "documents apart, the learning rate too high, or the pooler cut off from the loss"
        )

    def _nsp_is_perfect(self, metrics: Mapping[str, float]) -> str:
        if "nsp_accuracy" not in metrics:
            return ""
        self._nsp_perfect = self._nsp_perfect + 1 if metrics["nsp_accuracy"] == 1.0 else 0
        if self._nsp_perfect < NSP_PERFECT_OBSERVATIONS:
            return ""
        return (
            f"NSP accuracy has been 1.0 in {self._nsp_perfect} lines in a row: the labels may all be equal, which "
            "teaches nothing; look at random_next_share in the examples' manifest, and give documents more files, or "
            "fewer documents.num_shards"
        )

    def _mlm_stands(self, step: int, metrics: Mapping[str, float]) -> str:
        loss = metrics.get("mlm_loss")
        if loss is None:
            return ""
        if loss < self._mlm_best - MLM_PROGRESS or step <= self._num_warmup_steps:
            self._mlm_best, self._mlm_step = min(loss, self._mlm_best), step
        steps = step - self._mlm_step
        if steps < MLM_STEPS or self._mlm_best < MLM_PLATEAU:
            return ""
        return (
            f"MLM loss has not fallen below {self._mlm_best:.2f} for {steps:,} steps: the model knows how frequent "
            "words are and nothing else; the learning rate may be too high or too low, or the warm-up too short"
        )

    def _pooler_is_still(self, metrics: Mapping[str, float]) -> str:
        if "pooler_gradient" not in metrics:
            return ""
        self._pooler_zeros = self._pooler_zeros + 1 if metrics["pooler_gradient"] == 0.0 else 0
        if self._pooler_zeros < POOLER_OBSERVATIONS:
            return ""
        return "pooler gradient is zero: nothing that the next-sentence task learns reaches the encoder"

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
