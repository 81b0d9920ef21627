"""Statistics of pre-training, distillation and fine-tuning trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import ConfigDict, Field

from pipelines.contract.statistics import StageWarnings, Statistics
from pipelines.statistics.metrics import BERT_METRICS, Metric
from pipelines.statistics.preprocessing import TextFit


class Lineage(Statistics):
    """A model that a run took its weights from."""

    relation: Literal["initial_encoder", "checkpoint"]
    source: str
    """As the recipe or the command names it."""
    digest: str
    """Of the encoder's files, or of the checkpoint's."""
    step: int | None = None
    """Of a checkpoint."""
    initialized: list[str] = Field(default_factory=list)
    """Parts of the model that the source lacks, which began with new weights."""
    extended: dict[str, int] = Field(default_factory=dict)
    """Rows added to a matrix of the source, by what they are for."""
    dropped: list[str] = Field(default_factory=list)
    """Parts of the source that the model has no place for."""
    differences: list[str] = Field(default_factory=list)
    """Settings and inputs that differ from those of the source's run, in words."""

    def in_words(self) -> str:
        """`initial encoder bert-base (digest 0123456789ab), next-sentence head initialized`."""
        at = f" of step {self.step:,}" if self.step is not None else ""
        parts = [f"{self.relation.replace('_', ' ')} {self.source}{at} (digest {self.digest[:12]})"]
        parts += [f"{name} initialized" for name in self.initialized]
        parts += [f"{count:,} {name} added" for name, count in self.extended.items()]
        parts += [f"{name} not used" for name in self.dropped]
        parts += self.differences
        return ", ".join(parts)


class TrainingStatistics(StageWarnings):
    """What every stage of the training loop states; what a release left out is None, or empty."""

    # JSON has metrics as objects, and whole numbers where a score is one.
    model_config = ConfigDict(strict=False)

    steps: int | None = None
    tokens: int | None = None
    sequences: int | None = None
    world_size: int | None = None
    precision: str | None = None
    """`fp32`, `bf16` or `fp16`: what `auto` was."""
    heldout_before: dict[str, float] = Field(default_factory=dict)
    metrics: tuple[Metric, ...] = BERT_METRICS
    """Of the objective; manifests of earlier releases do not state them, and are BERT's."""
    lineage: tuple[Lineage, ...] = ()
    """Where the initial weights came from, in the order in which they were taken; empty for random weights."""

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


class AccuracyStatistics(Statistics):
    """An accuracy on minimal pairs; a tie counts half."""

    model_config = ConfigDict(strict=False)

    accuracy: float
    standard_error: float
    pairs: int
    ties: int = 0


class MinimalPairsStatistics(Statistics):
    """The last scoring of minimal pairs in a run."""

    data: str
    """As the recipe names it."""
    data_sha256: str
    """Of the sentences and their groups."""
    method: str
    unknown_tokens: int = 0
    overall: AccuracyStatistics
    fields: dict[str, AccuracyStatistics] = Field(default_factory=dict)
    groups: dict[str, AccuracyStatistics] = Field(default_factory=dict)

    @property
    def parts(self) -> Mapping[str, AccuracyStatistics]:
        """By field, or by group where the pairs have no fields."""
        return self.fields or self.groups


class PretrainingStatistics(TrainingStatistics):
    """What came of pre-training."""

    heldout_after: dict[str, float] = Field(default_factory=dict)
    parameters: int | None = None
    deviations: str | None = None
    """From BERT, in words."""
    unigram_baseline: dict[str, float] = Field(default_factory=dict)
    """Loss and accuracy of a model that knows how frequent each token is and nothing else."""
    minimal_pairs: MinimalPairsStatistics | None = None

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


class FamilyStatistics(Statistics):
    """What a family of fine-tuning tasks states of a trial: None for the others.

    A family's own metrics may stand next to these, under their names: they are kept.
    """

    model_config = ConfigDict(extra="allow")

    constant_baseline: float | None = None
    """Score of the best answer that is always the same."""
    majority_baseline: float | None = None
    """Score of the most frequent training class as the only answer."""
    mismatched: dict[str, float] | None = None
    """Metrics on MNLI's second development file."""
    train_rows: int | None = None
    dev_rows: int | None = None

    version: str | None = None
    """Of SQuAD."""
    train_questions: int | None = None
    train_windows: int | None = None
    train_answers_inside_tokens: int | None = None
    """Answers that begin or end within a token."""
    dev_questions: int | None = None
    dev_windows: int | None = None

    labels: list[str] | None = None
    """Of tagging and of tables, by id."""
    schemes: dict[str, str] | None = None
    """How each file spells its spans."""
    train_sentences: int | None = None
    dev_sentences: int | None = None
    test: dict[str, float] | None = None
    dev_by_type: dict[str, dict[str, int | float]] | None = None
    test_by_type: dict[str, dict[str, int | float]] | None = None


class TrialStatistics(FamilyStatistics):
    """A fine-tuning trial."""

    task: str
    start: str
    """A word for the weights that it was initialized from."""
    metric: str
    score: float
    """By `metric`, of the best epoch."""
    dev: dict[str, float]
    """All metrics of that epoch on the development rows."""
    best_epoch: int
    seconds: float
    text: TextFit | None = None
    """Of the training and development texts; manifests of earlier releases do not state it."""

    @property
    def num_dev_rows(self) -> int | None:
        """Rows, questions or sentences that the score is from, by the family of the task."""
        return next(
            (rows for rows in (self.dev_rows, self.dev_questions, self.dev_sentences) if rows is not None), None
        )

    @property
    def chance(self) -> float:
        """What the best answer that is always the same scores: 0 for correlations and spans of tags."""
        known = (self.constant_baseline, self.majority_baseline)
        return next((baseline for baseline in known if baseline is not None), 0.0)

    @property
    def null_threshold(self) -> float | None:
        """Above which SQuAD 2.0's answer is none."""
        return self.dev.get("null_threshold")
