"""What the manifests of the stages state about their results: one typed model per stage, for writers and readers.

A writer builds the model and passes it to `StageKey.manifest`; a reader asks `Manifest.statistics_as` for it. Only what
a writer set is stored, so a field with a default may be absent from a manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

HELDOUT_PREFIX = "heldout_"
"""Begins the name of a metric in metrics.jsonl where it is that of held-out examples."""

_PIECES_PER_WORD_OF_SINGLE_PIECES = 1.02

Unit = Literal["nats", "share", "number"]


@dataclass(frozen=True)
class Metric:
    """One metric of an objective, as its stage's manifest states it.

    name: in statistics and metrics.jsonl. label: for people. unit: a loss in nats, a share of 1, or a plain number.
    """

    name: str
    label: str
    unit: Unit
    more_is_better: bool = False


LOSS = Metric("loss", "loss", "nats")
"""What training minimizes; every objective has it."""

MLM_LOSS = Metric("mlm_loss", "MLM loss", "nats")

BERT_METRICS = (
    Metric("mlm_accuracy", "MLM accuracy", "share", more_is_better=True),
    Metric("nsp_accuracy", "NSP accuracy", "share", more_is_better=True),
    Metric("mlm_perplexity", "MLM perplexity", "number"),
    LOSS,
    MLM_LOSS,
    Metric("nsp_loss", "NSP loss", "nats"),
)
"""The first of an objective's metrics is the one that its models are judged by."""

MASKED_LM_METRICS = tuple(metric for metric in BERT_METRICS if not metric.name.startswith("nsp_"))


class Statistics(BaseModel):
    """Base of all models: frozen, nothing converted; keys that a model does not know are ignored when it is read."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, use_attribute_docstrings=True)

    def to_json(self) -> dict[str, Any]:
        """The values that were set, as a manifest stores them."""
        return self.model_dump(exclude_unset=True)


class StageWarnings(Statistics):
    """Lines for the person who runs a stage, each with the setting that changes it; any manifest reads as this."""

    warnings: list[str] = []


class DecontaminationStatistics(Statistics):
    """What was looked for in the documents, and where it was found."""

    evaluation_texts: int
    short_texts: int
    """Of fewer words than an n-gram: these are not looked for."""
    evaluation_grams: int
    """Distinct n-grams."""
    documents_by_file: dict[str, int]
    """Documents dropped, by the evaluation file with the first n-gram that they share."""


class DocumentsStatistics(Statistics):
    """What became of a corpus; characters and sentences are those of all documents that were kept."""

    documents_read: int
    documents_kept: int
    documents_rejected: int
    rejected_by_reason: dict[str, int]
    first_rejects: dict[str, list[list[str]]]
    """By reason: source and detail of some of the rejected texts."""
    cleaning: dict[str, int]
    """How often each change was made to a text."""
    train_documents: int
    heldout_documents: int
    sentences: int
    characters: int
    decontamination: DecontaminationStatistics | None = None
    """Set if evaluation data were looked for."""


class TextFit(Statistics):
    """How well a vocabulary fits a text. Characters are those of words: white space is not among them."""

    words: int
    tokens: int
    unk: int
    characters: int
    unk_characters: int
    pieces_per_word: float
    unk_share: float
    """Of the tokens."""
    unk_characters_share: float

    @property
    def has_only_single_pieces(self) -> bool:
        """Whether whole-word masking draws what masking of single tokens draws, as in Chinese."""
        return self.pieces_per_word < _PIECES_PER_WORD_OF_SINGLE_PIECES


class VocabularyExtension(Statistics):
    """Words of the corpus that were added to a vocabulary."""

    words_added: int
    into_unused: int
    appended: int
    pieces_per_word_before: float
    unk_share_before: float
    examples: list[str]
    """The most useful of them."""
    replaced: dict[str, str]
    """The word that replaces each `[unusedN]` entry."""


class VocabularyStatistics(TextFit, StageWarnings):
    """A vocabulary, and how well it fits the training documents."""

    size: int
    distinct_words: int
    distinct_characters: int
    long_words: int
    """More characters than the tokenizer takes: each becomes [UNK]."""
    long_words_characters_share: float
    marks_stripped: int
    """Accents and vowel signs that lower-casing takes away."""
    marks_stripped_share: float
    origin: str | None = None
    """Where it was brought from, as the recipe has it; None if it was trained."""
    extension: VocabularyExtension | None = None


class SplitRows(Statistics):
    """Sums over the rows of one split."""

    examples: int
    tokens: int
    random_next: int


class RowCounts(SplitRows):
    """Counts of rows, which add up over batches and files; the files of the examples have these too.

    A random token that happens to equal the original counts as kept, and a random [MASK] as [MASK]. `unk` counts [UNK]
    as it stood before masking, `masked_unk` where it is to be predicted.
    """

    masked: int
    masked_as_mask: int
    masked_as_kept: int
    masked_as_random: int
    unk: int
    masked_unk: int


class TokenLosses(Statistics):
    """What becomes of the documents' tokens when rows of one maximum length are cut from them; adds up over shards."""

    sentences: int
    long_sentences: int
    """With more tokens than a row has room for."""
    tokens_to_place: int
    """Each counted once a pass."""
    tokens_cut: int
    """How many of these no row holds."""
    same_document_random_next: int
    """Random next sentences from another piece of the same text."""


class BinBalance(Statistics):
    """Sums over the training files of a length bin, and by which share the one that differs most is off their mean."""

    train_examples: int
    train_tokens: int
    most_off_mean_examples: float
    most_off_mean_tokens: float


class LengthStatistics(RowCounts, TokenLosses):
    """The examples of one maximum length."""

    random_next_share: float
    masked_share: float
    mask_token_share: float
    kept_token_share: float
    random_token_share: float
    """Of the masked tokens, as the two before it."""
    unk_share: float
    masked_unk_share: float
    tokens_cut_share: float
    long_sentences_share: float
    same_document_random_next_share: float
    shortest_example: int
    longest_example: int
    mean_length: float
    length_histogram: dict[str, int]
    """Rows by number of tokens; a bar's name is its greatest length, with leading zeros."""
    splits: dict[str, SplitRows]
    bins: dict[str, BinBalance]


class ExamplesText(TextFit):
    """The documents that examples were made from."""

    train_documents: int
    heldout_documents: int


class SourceStatistics(Statistics):
    """How often a set of examples reads a source; a document's tokens are those of its text."""

    train_documents: int
    train_tokens: int
    """Each counted once."""
    tokens_read: int
    """In all passes; random next sentences are not among them."""
    reads_per_pass: float
    asked_share: float
    share: float
    """Of the tokens that the set reads, as `asked_share`."""


class SetStatistics(Statistics):
    """One of `examples.sets`."""

    lengths: dict[str, LengthStatistics]
    sources: dict[str, SourceStatistics] = {}


class ExamplesStatistics(StageWarnings):
    """The examples of all lengths; `lengths` has the maximum length as text, as JSON wants it.

    These and `sources` are of the section's own set, and absent `sources` are all, each document read once a pass.
    """

    lengths: dict[str, LengthStatistics]
    text: ExamplesText
    sources: dict[str, SourceStatistics] = {}
    sets: dict[str, SetStatistics] = {}

    def of_length(self, max_seq_length: int, examples: str | None = None) -> LengthStatistics | None:
        """None where no examples of this length were made; `examples` names a set."""
        lengths = self.lengths if examples is None else self.sets[examples].lengths if examples in self.sets else {}
        return lengths.get(str(max_seq_length))

    def all_lengths(self) -> dict[str, LengthStatistics]:
        """Of every set, by the directory below the stage's without the word "length": `128`, `NAME/128`."""
        own = dict(self.lengths)
        return own | {f"{name}/{most}": one for name, of in self.sets.items() for most, one in of.lengths.items()}

    def all_sources(self) -> dict[str | None, dict[str, SourceStatistics]]:
        """Of every set that has weights or names sources, by the set's name; None is the section's own."""
        found: dict[str | None, dict[str, SourceStatistics]] = {None: self.sources}
        found |= {name: of.sources for name, of in self.sets.items()}
        return {name: sources for name, sources in found.items() if sources}


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


StatisticsT = TypeVar("StatisticsT", bound=Statistics)


def missing_or_wrong(error: ValidationError) -> str:
    """The first fault of a manifest's statistics, in words: `statistics.lengths.128.tokens is missing`."""
    problem = error.errors(include_url=False)[0]
    name = ".".join(["statistics", *map(str, problem["loc"])])
    return f"{name} is missing" if problem["type"] == "missing" else f"{name}: {problem['msg']}"


class Lineage(Statistics):
    """A model that a run took its weights from."""

    relation: Literal["initial_encoder", "checkpoint"]
    source: str
    """As the recipe or the command names it."""
    digest: str
    """Of the encoder's files, or of the checkpoint's."""
    step: int | None = None
    """Of a checkpoint."""
    initialized: list[str] = []
    """Parts of the model that the source lacks, which began with new weights."""
    extended: dict[str, int] = {}
    """Rows added to a matrix of the source, by what they are for."""
    dropped: list[str] = []
    """Parts of the source that the model has no place for."""
    differences: list[str] = []
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
