"""Alarms of BERT's pre-training: a task that makes no progress, or is trivial."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipelines.statistics.metrics import MLM_LOSS, Metric
from training.alarms.reference_curve import ReferenceCurve, ReferenceRule
from training.alarms.rules import Alarms

NSP_STEPS = 2_000
NSP_TOLERANCE = 0.01
NSP_PERFECT_OBSERVATIONS = 3
LM_STEPS = 5_000
LM_PLATEAU = 6.0
"""Approximate loss, in nats, of a model that knows only the token frequencies of a 30,522-entry vocabulary."""
LM_PROGRESS = 0.02
POOLER_GRADIENT = "pooler_gradient"
POOLER_OBSERVATIONS = 3


class BertAlarms(Alarms):
    """Watches masked LM, next sentence, and the pooler's gradient, which connects the latter with the encoder."""

    def __init__(
        self, num_warmup_steps: int, reference: ReferenceCurve | None = None, lm_loss: Metric = MLM_LOSS
    ) -> None:
        """
        Args:
            num_warmup_steps: a constant loss during warm-up is not a sign.
            reference: the curve that the run should follow.
            lm_loss: the loss of the predicted tokens.
        """
        super().__init__(lm_loss)
        self._lm_loss = lm_loss
        self._reference = ReferenceRule(reference, lm_loss.name) if reference is not None else None
        self._num_warmup_steps = num_warmup_steps
        self._nsp_since: int | None = None
        self._nsp_perfect = 0
        self._lm_best, self._lm_step = math.inf, 0
        self._pooler_zeros = 0

    def rules(self, step: int, metrics: Mapping[str, float]) -> dict[str, str]:
        """All rules; they read the loss, `nsp_loss`, `nsp_accuracy`, POOLER_GRADIENT and `tokens_per_second`."""
        return {
            "nsp": self._nsp_stands(step, metrics),
            "nsp_perfect": self._nsp_is_perfect(metrics),
            "lm": self._lm_stands(step, metrics),
            "pooler": self._pooler_is_still(metrics),
            "reference": self._reference.observe(metrics) if self._reference is not None else "",
            **super().rules(step, metrics),
        }

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
            f"NSP loss has stayed at 0.69 for {steps:,} steps, which is guessing: sequences may be too short to "
            "distinguish documents, the learning rate too high, or the pooler disconnected from the loss"
        )

    def _nsp_is_perfect(self, metrics: Mapping[str, float]) -> str:
        if "nsp_accuracy" not in metrics:
            return ""
        self._nsp_perfect = self._nsp_perfect + 1 if metrics["nsp_accuracy"] == 1.0 else 0
        if self._nsp_perfect < NSP_PERFECT_OBSERVATIONS:
            return ""
        return (
            f"NSP accuracy has been 1.0 in {self._nsp_perfect} lines in a row: the labels may all be equal, which "
            "teaches nothing; check random_next_share in the examples' manifest, and use more document files, or "
            "fewer documents.num_shards"
        )

    def _lm_stands(self, step: int, metrics: Mapping[str, float]) -> str:
        loss = metrics.get(self._lm_loss.name)
        if loss is None:
            return ""
        if loss < self._lm_best - LM_PROGRESS or step <= self._num_warmup_steps:
            self._lm_best, self._lm_step = min(loss, self._lm_best), step
        steps = step - self._lm_step
        if steps < LM_STEPS or self._lm_best < LM_PLATEAU:
            return ""
        return (
            f"{self._lm_loss.label} has not fallen below {self._lm_best:.2f} for {steps:,} steps: the model knows word "
            "frequencies only; the learning rate may be too high or too low, or the warm-up too short"
        )

    def _pooler_is_still(self, metrics: Mapping[str, float]) -> str:
        if POOLER_GRADIENT not in metrics:
            return ""
        self._pooler_zeros = self._pooler_zeros + 1 if metrics[POOLER_GRADIENT] == 0.0 else 0
        if self._pooler_zeros < POOLER_OBSERVATIONS:
            return ""
        return "pooler gradient is zero: the next-sentence task does not train the encoder"
