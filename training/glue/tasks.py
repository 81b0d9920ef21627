"""The tasks of GLUE (Wang et al. 2018) in one table, with the word-order task of the demonstration beside them."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines import storage
from pipelines.recipe import InputError
from training.config import WORD_ORDER


@dataclass(frozen=True)
class Column:
    """A column of a TSV file: by the name in its header, or by its number where the file has no header."""

    name: str
    number: int | None = None


@dataclass(frozen=True)
class Task:
    """Where a task's rows are, what they mean and how predictions are scored.

    labels: in the order of the class numbers; empty for regression. metric: the one that chooses the best checkpoint
    and stands for the task in the paper's table 1; `metrics` holds all that are reported.
    """

    name: str
    folder: str
    sentence_a: Column
    sentence_b: Column | None
    label: Column
    labels: tuple[str, ...]
    metric: str
    metrics: tuple[str, ...]
    train_file: str = "train.tsv"
    dev_files: tuple[str, ...] = ("dev.tsv",)
    test_files: tuple[str, ...] = ("test.tsv",)
    skips_broken_rows: bool = False
    """QQP's official training file holds rows cut off by line breaks inside a question; all readers leave them out."""

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def num_labels(self) -> int:
        """Outputs of the classifier: one per class, or a single score."""
        return len(self.labels) or 1

    @property
    def has_header(self) -> bool:
        """Do train and dev begin with a header? (Test files always do.)"""
        return self.label.number is None


_ENTAILMENT = ("entailment", "not_entailment")
_MNLI_LABELS = ("contradiction", "entailment", "neutral")
_COLA_COLUMNS = (Column("sentence", 3), None, Column("label", 1))
_PAIR = (Column("sentence1"), Column("sentence2"))

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("cola", "CoLA", *_COLA_COLUMNS, ("0", "1"), "matthews_correlation", ("matthews_correlation", "accuracy")),
        Task("sst-2", "SST-2", Column("sentence"), None, Column("label"), ("0", "1"), "accuracy", ("accuracy",)),
        Task(
            "mrpc", "MRPC", Column("#1 String"), Column("#2 String"), Column("Quality"), ("0", "1"), "f1",
            ("f1", "accuracy"),
        ),
        Task("sts-b", "STS-B", *_PAIR, Column("score"), (), "spearman", ("spearman", "pearson")),
        Task(
            "qqp", "QQP", Column("question1"), Column("question2"), Column("is_duplicate"), ("0", "1"), "f1",
            ("f1", "accuracy"), skips_broken_rows=True,
        ),
        Task(
            "mnli", "MNLI", *_PAIR, Column("gold_label"), _MNLI_LABELS, "accuracy", ("accuracy",),
            dev_files=("dev_matched.tsv", "dev_mismatched.tsv"),
            test_files=("test_matched.tsv", "test_mismatched.tsv"),
        ),
        Task(
            "qnli", "QNLI", Column("question"), Column("sentence"), Column("label"), _ENTAILMENT, "accuracy",
            ("accuracy",),
        ),
        Task("rte", "RTE", *_PAIR, Column("label"), _ENTAILMENT, "accuracy", ("accuracy",)),
        Task("wnli", "WNLI", *_PAIR, Column("label"), ("0", "1"), "accuracy", ("accuracy",)),
        Task(
            "ax", "AX", *_PAIR, Column("label"), _MNLI_LABELS, "matthews_correlation", ("matthews_correlation",),
            train_file="", dev_files=(), test_files=("diagnostic.tsv",),
        ),
        Task(WORD_ORDER, WORD_ORDER, *_COLA_COLUMNS, ("0", "1"), "accuracy", ("accuracy", "matthews_correlation")),
    )
}  # fmt: skip
"""`ax` is for prediction only, by a model that was trained on `mnli`."""


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
                f"{path}: missing; finetuning.glue_dir = {glue_dir} must hold GLUE's own folders, such as {task.folder}"
            )
    return paths
