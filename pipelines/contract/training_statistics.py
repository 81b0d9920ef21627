"""What the manifests of pre-training and distillation state, typed; without torch."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ConfigDict, Field

from pipelines.contract.metrics import BERT_METRICS, Metric
from pipelines.contract.statistics import StageWarnings, Statistics


class TrainingStatistics(StageWarnings):
    """What every stage of the training loop states; what a release left out is None, or empty."""

    # JSON has metrics as objects, and whole numbers where a score is one.
    model_config = ConfigDict(strict=False)

    steps: int | None = None
    tokens: int | None = None
    sequences: int | None = None
    world_size: int | None = None
    heldout_before: dict[str, float] = Field(default_factory=dict)
    metrics: tuple[Metric, ...] = BERT_METRICS
    """Of the objective; manifests of earlier releases do not state them, and are BERT's."""

    @property
    def heldout(self) -> Mapping[str, float]:
        """Held-out metrics of the finished model; empty where nothing was held out."""
        return {}

    @property
    def judged_by(self) -> Metric:
        """The metric that models of this objective are compared by."""
        return self.metrics[0]

    @property
    def heldout_metrics(self) -> tuple[Metric, ...]:
        """The metrics that were measured on held-out examples; all of them before the stage is complete."""
        known = {*self.heldout_before, *self.heldout}
        return tuple(metric for metric in self.metrics if not known or metric.name in known)


class PretrainingStatistics(TrainingStatistics):
    """What came of pre-training."""

    heldout_after: dict[str, float] = Field(default_factory=dict)
    parameters: int | None = None
    deviations: str | None = None
    """From BERT, in words."""
    unigram_baseline: dict[str, float] = Field(default_factory=dict)
    """Loss and accuracy of a model that knows how frequent each token is and nothing else."""

    @property
    def heldout(self) -> Mapping[str, float]:
        return self.heldout_after


class EncoderMeasures(Statistics):
    """What teacher and student are compared by."""

    num_hidden_layers: int | None = None
    parameters: int | None = None
    bytes: int | None = None
    tokens_per_second: float | None = None
    heldout: dict[str, float] = Field(default_factory=dict)


class DistillationStatistics(TrainingStatistics):
    """What came of distillation."""

    teacher_layers: tuple[int, ...] = ()
    teacher: EncoderMeasures = EncoderMeasures()
    student: EncoderMeasures = EncoderMeasures()

    @property
    def heldout(self) -> Mapping[str, float]:
        return self.student.heldout
