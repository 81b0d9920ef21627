"""The tasks of GLUE (Wang et al. 2018) and the word-order task of the demonstration, in one table; light to import.

The settings of the word-order task, recipe section `[finetuning.word_order]`, are here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import model_validator

from pipelines.contract import storage
from pipelines.contract.bounds import Bounded, Seed
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import Section

WORD_ORDER, MNLI = "word-order", "mnli"
BEGIN_FROM_MNLI = ("mrpc", "rte", "sts-b")
"""Small tasks that later systems initialize from an MNLI-tuned encoder (RoBERTa, section 5.1); BERT did not."""


@dataclass(frozen=True)
class Column:
    """A column of a TSV file, by its name in the header, or by its number if the file has no header."""

    name: str
    number: int | None = None


@dataclass(frozen=True)
class Task:
    """A task's files and columns, its labels and metrics, and the names of its predictions in a submission.

    labels: in the order of the class numbers; empty for regression. metric: the one that chooses the best checkpoint
    and represents the task in the BERT paper's table 1. metrics: all that the leaderboard shows for the task;
    also_reported: further ones of ours.
    """

    name: str
    folder: str
    sentence_a: Column
    sentence_b: Column | None
    label: Column
    labels: tuple[str, ...]
    metric: str
    metrics: tuple[str, ...]
    also_reported: tuple[str, ...] = ()
    train_file: str = "train.tsv"
    dev_files: tuple[str, ...] = ("dev.tsv",)
    test_files: tuple[str, ...] = ("test.tsv",)
    submissions: tuple[str, ...] = ()
    """Name, without .tsv, of each test file's predictions in a submission."""
    names: tuple[str, ...] = ()
    """Names of the labels, if the files have numbers only."""
    predicted_by: str = ""
    """The task whose model predicts this one, if it is another."""
    majority: str = ""
    """The most frequent label of the full training file, for regression its mean score: a constant baseline."""
    rows: tuple[int, ...] = ()
    """Rows of the full files as published: of train, dev and test, in this order."""
    skips_broken_rows: bool = False
    """QQP's official training file has rows broken by line breaks inside a question; all readers skip them."""

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of a model's outputs, in the order of the class numbers; for regression its only output."""
        return self.names or self.labels or ("score",)

    @property
    def num_labels(self) -> int:
        """Outputs of the classifier: one per class, or a single score."""
        return len(self.labels) or 1

    @property
    def has_header(self) -> bool:
        """Whether train and dev files have a header. (Test files always do.)"""
        return self.label.number is None

    @property
    def submission_files(self) -> dict[str, str]:
        """Test file by the name of its predictions."""
        return dict(zip(self.submissions, self.test_files, strict=True)) if self.submissions else {}

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files in the task's folder."""
        return tuple(file for file in (self.train_file, *self.dev_files, *self.test_files) if file)

    @property
    def published_rows(self) -> dict[str, int]:
        """Rows of each full file; empty for a task outside GLUE."""
        return dict(zip(self.files, self.rows, strict=True)) if self.rows else {}


MAX_SCORE = 5.0
"""Scores of STS-B are between 0 and this."""

_ENTAILMENT = ("entailment", "not_entailment")
_MNLI_LABELS = ("contradiction", "entailment", "neutral")
_COLA_COLUMNS = (Column("sentence", 3), None, Column("label", 1))
_PAIR = (Column("sentence1"), Column("sentence2"))

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "cola", "CoLA", *_COLA_COLUMNS, ("0", "1"), "matthews_correlation", ("matthews_correlation",),
            also_reported=("accuracy",), submissions=("CoLA",), majority="1", rows=(8_551, 1_043, 1_063),
            names=("unacceptable", "acceptable"),
        ),
        Task(
            "sst-2", "SST-2", Column("sentence"), None, Column("label"), ("0", "1"), "accuracy", ("accuracy",),
            submissions=("SST-2",), majority="1", rows=(67_349, 872, 1_821),
            names=("negative", "positive"),
        ),
        Task(
            "mrpc", "MRPC", Column("#1 String"), Column("#2 String"), Column("Quality"), ("0", "1"), "f1",
            ("f1", "accuracy"), submissions=("MRPC",), majority="1", rows=(3_668, 408, 1_725),
            names=("not_equivalent", "equivalent"),
        ),
        Task(
            "sts-b", "STS-B", *_PAIR, Column("score"), (), "spearman", ("spearman", "pearson"),
            submissions=("STS-B",), majority="2.701", rows=(5_749, 1_500, 1_379),
        ),
        Task(
            "qqp", "QQP", Column("question1"), Column("question2"), Column("is_duplicate"), ("0", "1"), "f1",
            ("f1", "accuracy"), submissions=("QQP",), majority="0", rows=(363_846, 40_430, 390_965),
            skips_broken_rows=True,
            names=("not_duplicate", "duplicate"),
        ),
        Task(
            "mnli", "MNLI", *_PAIR, Column("gold_label"), _MNLI_LABELS, "accuracy", ("accuracy",),
            dev_files=("dev_matched.tsv", "dev_mismatched.tsv"),
            test_files=("test_matched.tsv", "test_mismatched.tsv"),
            submissions=("MNLI-m", "MNLI-mm"), majority="contradiction", rows=(392_702, 9_815, 9_832, 9_796, 9_847),
        ),
        Task(
            "qnli", "QNLI", Column("question"), Column("sentence"), Column("label"), _ENTAILMENT, "accuracy",
            ("accuracy",), submissions=("QNLI",), majority="not_entailment", rows=(104_743, 5_463, 5_463),
        ),
        Task(
            "rte", "RTE", *_PAIR, Column("label"), _ENTAILMENT, "accuracy", ("accuracy",),
            submissions=("RTE",), majority="entailment", rows=(2_490, 277, 3_000),
        ),
        Task(
            "wnli", "WNLI", *_PAIR, Column("label"), ("0", "1"), "accuracy", ("accuracy",),
            submissions=("WNLI",), majority="0", rows=(635, 71, 146),
            names=("not_entailment", "entailment"),
        ),
        Task(
            "ax", "AX", *_PAIR, Column("label"), _MNLI_LABELS, "matthews_correlation", ("matthews_correlation",),
            train_file="", dev_files=(), test_files=("diagnostic.tsv",),
            submissions=("AX",), predicted_by="mnli", majority="contradiction", rows=(1_104,),
        ),
        Task(
            WORD_ORDER, WORD_ORDER, *_COLA_COLUMNS, ("0", "1"), "accuracy", ("accuracy",),
            also_reported=("matthews_correlation",),
            names=("damaged", "intact"),
        ),
    )
}  # fmt: skip
"""`ax`, GLUE's diagnostic set, is for prediction only, by a model trained on `mnli`.

The classes of QNLI and MNLI are balanced to within a few rows, so their majority is arbitrary. AX has no training rows
and uses MNLI's.
"""

GLUE_TASKS = tuple(task for task in TASKS.values() if task.submissions)
GLUE_TASK_NAMES = tuple(task.name for task in GLUE_TASKS if not task.predicted_by)
"""Tasks that a model is trained on."""


def task_files(name: str, glue_dir: str) -> list[str]:
    """Paths of the training and development files of a task.

    Raises:
        InputError: one is missing.
    """
    task = TASKS[name]
    paths = [storage.join(glue_dir, task.folder, file) for file in (task.train_file, *task.dev_files)]
    for path in paths:
        if storage.file_size_bytes(path) is None:
            raise InputError(
                f"{path}: missing; finetuning.glue_dir = {glue_dir} must contain GLUE's own folders, such as "
                f"{task.folder}; clozeworks glue fetch --output {glue_dir} downloads them"
            )
    return paths


def prediction_files(name: str, glue_dir: str) -> list[str]:
    """Paths of the existing test files that a task's model predicts; MNLI's predicts the diagnostic set, too."""
    tasks = (task for task in TASKS.values() if name in (task.name, task.predicted_by))
    paths = [storage.join(glue_dir, task.folder, file) for task in tasks for file in task.submission_files.values()]
    return [path for path in paths if storage.file_size_bytes(path) is not None]


_Rows = Annotated[int, Bounded(2, 100_000_000, "half are intact, half reordered, and all are held in memory")]
_Words = Annotated[int, Bounded(3, 10_000, "a sentence needs several words to have an order, and is one row")]
_Run = Annotated[int, Bounded(2, 10_000, "one word alone has no order")]


class WordOrderConfig(Section):
    """`[finetuning.word_order]`: the demonstration task, generated from held-out documents in CoLA's form."""

    max_train_examples: _Rows = 4_000
    max_dev_examples: _Rows = 1_000
    min_words: _Words = 6
    max_words: _Words = 40
    damaged_words: _Run = 5
    """Number of consecutive words that are reordered."""
    seed: Seed = 12_345

    @model_validator(mode="after")
    def _words_fit(self) -> WordOrderConfig:
        if not self.damaged_words <= self.min_words <= self.max_words:
            raise ValueError(
                f"damaged_words = {self.damaged_words}, min_words = {self.min_words}, max_words = {self.max_words} "
                "must not decrease in this order"
            )
        return self
