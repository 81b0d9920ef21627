"""Recipe sections `[[finetuning.tables]]`: files of rows with the user's own labels; light to import, without torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from pipelines.contract import storage
from pipelines.contract.bounds import Bounded, Probability, Text, UserPath
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import Section

Kind = Literal["single", "multi", "regression"]

METRICS: dict[Kind, tuple[str, ...]] = {
    "single": ("accuracy", "macro_f1", "f1", "matthews_correlation"),
    "multi": ("micro_f1", "macro_f1", "exact_match"),
    "regression": ("spearman", "pearson"),
}
"""Metrics of each kind of label, the default first; more is better in all. Computed in training/tables/scores.py."""

POSITIVE_METRIC = "f1"
"""The metric of one label against all others, which `positive_label` names."""

SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
"""Formats by the end of a file's name; a directory is one that `datasets.save_to_disk` wrote."""

DIRECTORY_FORMAT = "arrow"
ROLES = ("train_file", "dev_file", "test_file")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _is_file_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "it names a directory and a model: use up to 64 letters, digits, hyphens and underscores, "
            "a letter or digit first"
        )
    return name


def _is_between_cells(delimiter: str) -> str:
    if delimiter in '"\r\n\0':
        raise ValueError("it is between the cells of a row: use another character, such as ; or |")
    return delimiter


Name = Annotated[str, StringConstraints(min_length=1, max_length=1_024), AfterValidator(_is_file_name)]
Share = Annotated[
    float, Bounded(0.0, 1.0, "it is a share of the rows, and both parts need some", above_low=True, below_high=True)
]
Weight = Annotated[float, Bounded(1e-6, 1e6, "it multiplies the loss of a label's rows")]
Delimiter = Annotated[str, StringConstraints(min_length=1, max_length=1), AfterValidator(_is_between_cells)]


class LabelWeight(Section):
    """A label, and the weight of its loss."""

    label: Text
    weight: Weight


class TableConfig(Section):
    """`[[finetuning.tables]]`: rows of one or two texts with a label, several labels or a number each."""

    name: Name
    """The task's name in `tasks`, its directory in the workspace, and a part of its model's name."""
    train_file: UserPath
    dev_file: UserPath | None = None
    dev_share: Share | None = None
    """Instead of dev_file: this share of the training rows, chosen by a hash of their text alone, so that equal texts
    stay together and no choice changes when rows are added or reordered."""
    test_file: UserPath | None = None
    """Predicted once, with the best epoch's weights; scored if it has labels."""
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet", "arrow"] = "auto"
    """`auto` uses the end of each file's name; `arrow` is a directory that `datasets.save_to_disk` wrote."""
    delimiter: Delimiter | None = None
    """Between the columns of csv and tsv; None is a comma or a tab."""
    quotes: bool | None = None
    """Whether a cell may be in double quotes; None means in csv, but not in tsv, where a quote is a character."""
    text: Annotated[tuple[Text, ...], Field(min_length=1, max_length=2)] = ("text",)
    """Names of one column, or of two for a pair of texts."""
    label: Text = "label"
    """Name of the column with the labels."""
    label_separator: Text = ","
    """Between the labels of a cell, if kind = "multi" and the cell is text; a list needs none."""
    kind: Kind = "single"
    """One label of several, any number of labels, or a number."""
    metric: Text | None = None
    """Chooses the best epoch; None is accuracy, micro_f1 or spearman, by kind."""
    positive_label: Text | None = None
    """The label whose F1 is `f1`."""
    threshold: Probability = 0.5
    """kind = "multi": a label is predicted if its probability is at least this."""
    balance_labels: bool = False
    """Weight the loss against the frequency of the labels in the training rows."""
    class_weights: tuple[LabelWeight, ...] = ()
    """Weights of the loss of single labels, 1 for a label that is not named; instead of balance_labels."""

    @property
    def judged_by(self) -> str:
        """The metric that chooses the best epoch."""
        return self.metric or METRICS[self.kind][0]

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics that are computed, the one that chooses the best epoch first."""
        known = [name for name in METRICS[self.kind] if name != POSITIVE_METRIC or self.positive_label is not None]
        return tuple(sorted(known, key=lambda name: name != self.judged_by))

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result: without paths, whose contents do."""
        return {name: value for name, value in super().identity().items() if name not in ROLES}

    @model_validator(mode="after")
    def _dev_rows_are_named_once(self) -> TableConfig:
        if (self.dev_file is None) == (self.dev_share is None):
            found = "neither" if self.dev_file is None else "both"
            raise ValueError(f"table {self.name!r}: {found} of dev_file and dev_share; give one of them")
        if len({*self.text, self.label}) < len(self.text) + 1:
            raise ValueError(f"table {self.name!r}: text and label name a column twice; each has its own")
        return self

    @model_validator(mode="after")
    def _metric_fits(self) -> TableConfig:
        if self.judged_by not in METRICS[self.kind]:
            raise ValueError(
                f"table {self.name!r}: metric = {self.metric!r} is none of kind = {self.kind!r}; "
                f"valid names: {', '.join(METRICS[self.kind])}"
            )
        if self.judged_by == POSITIVE_METRIC and self.positive_label is None:
            raise ValueError(f"table {self.name!r}: metric = 'f1' is the F1 of one label; name it as positive_label")
        if self.positive_label is not None and self.kind != "single":
            raise ValueError(f"table {self.name!r}: positive_label is for kind = 'single'; remove it")
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> TableConfig:
        if len({each.label for each in self.class_weights}) < len(self.class_weights):
            raise ValueError(f"table {self.name!r}: class_weights names a label twice; give each once")
        if self.balance_labels and self.class_weights:
            raise ValueError(f"table {self.name!r}: both balance_labels and class_weights; give one of them")
        if self.kind == "regression" and (self.balance_labels or self.class_weights):
            raise ValueError(
                f"table {self.name!r}: weights are of labels, and kind = 'regression' has none; remove them"
            )
        return self


def format_of(table: TableConfig, role: str) -> str:
    """The format of a table's file.

    Raises:
        InputError: its name does not end in a known suffix and `format` is not set.
    """
    path = str(getattr(table, role))
    if table.format != "auto":
        return table.format
    for suffix, name in SUFFIXES.items():
        if path.lower().endswith(suffix):
            return name
    if storage.file_size_bytes(path) is None:
        return DIRECTORY_FORMAT
    raise InputError(
        f"{path}: its name does not end in one of {', '.join(SUFFIXES)}; set format of the table {table.name!r}"
    )


def files_of(table: TableConfig) -> dict[str, str]:
    """Paths of all files of a table, by a name that does not depend on where they are: `train_file/data.arrow`.

    Raises:
        InputError: one is missing.
    """
    found: dict[str, str] = {}
    for role in ROLES:
        path = getattr(table, role)
        if path is None:
            continue
        paths = _paths_at(path)
        if not paths:
            raise InputError(
                f"{path}: missing; {role} of the table {table.name!r} must name a file, or a directory that "
                "datasets.save_to_disk wrote"
            )
        found |= {f"{role}{name}": each for name, each in paths.items()}
    return found


def dev_files(table: TableConfig) -> list[str]:
    """Paths of the file or files with the development rows; empty if they are missing."""
    return list(_paths_at(table.dev_file or table.train_file).values())


def _paths_at(path: str) -> dict[str, str]:
    """The file itself, or all files below a directory, by their place in it."""
    if storage.file_size_bytes(path) is not None:
        return {"": path}
    return {f"/{name}": storage.join(path, name) for name in storage.list_files(path)}


def dev_choice(table: TableConfig) -> dict[str, Any]:
    """The settings that decide which rows of these files are scored, and against which labels."""
    return {name: value for name, value in table.identity().items() if name in _OF_DEV_ROWS}


_OF_DEV_ROWS = ("dev_share", "text", "label", "label_separator", "kind", "positive_label")
