"""Read GLUE's own TSV files as they are: no quoting, a byte-order mark here and there, no header in CoLA."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines import storage
from pipelines.recipe import InputError
from training.glue.tasks import Column, Task


@dataclass(frozen=True)
class LabelledText:
    """The rows of one file. labels: class numbers, or scores for regression; None where the file has no labels."""

    sentences_a: list[str]
    sentences_b: list[str] | None
    labels: list[float] | None

    def __len__(self) -> int:
        return len(self.sentences_a)


def read_examples(task: Task, path: str) -> LabelledText:
    """Read a training or development file.

    Raises:
        InputError: the file is missing or empty, or a row has too few columns or an unknown label.
    """
    rows, columns, first_line = _table(path, task, has_header=task.has_header)
    columns_needed = [task.sentence_a, *([task.sentence_b] if task.sentence_b else []), task.label]
    numbers = [_number(path, column, columns) for column in columns_needed]
    width = len(columns) or max(numbers) + 1
    kept, labels = [], []
    for line_number, row in enumerate(rows, start=first_line):
        if len(row) < width:
            if task.skips_broken_rows:
                continue
            raise InputError(f"{path}:{line_number}: has {len(row)} columns where {width} were expected")
        kept.append(row)
        labels.append(_label_of(task, path, line_number, row[numbers[-1]].strip()))
    if not kept:
        raise InputError(f"{path}: holds no rows; expected tab-separated rows of {task.folder}")
    return LabelledText(
        [row[numbers[0]].strip() for row in kept],
        [row[numbers[1]].strip() for row in kept] if task.sentence_b else None,
        labels,
    )


def read_test(task: Task, path: str) -> LabelledText:
    """Read a test file, which has a header and no labels that count."""
    rows, columns, first_line = _table(path, task, has_header=True)
    numbers = [columns.index(task.sentence_a.name) if task.sentence_a.name in columns else len(columns) - 1]
    if task.sentence_b:
        numbers = [_number(path, Column(column.name), columns) for column in (task.sentence_a, task.sentence_b)]
    for line_number, row in enumerate(rows, start=first_line):
        if len(row) < len(columns):
            raise InputError(f"{path}:{line_number}: has {len(row)} columns where {len(columns)} were expected")
    return LabelledText(
        [row[numbers[0]].strip() for row in rows],
        [row[numbers[1]].strip() for row in rows] if task.sentence_b else None,
        None,
    )


def _table(path: str, task: Task, has_header: bool) -> tuple[list[list[str]], list[str], int]:
    """Rows split at tabs, the header's names, and the line number of the first row."""
    if storage.file_size_bytes(path) is None:
        raise InputError(f"{path}: missing; expected GLUE's own file for {task.folder}")
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; expected GLUE's own file") from error
    rows = [line.removesuffix("\r").split("\t") for line in text.split("\n")]
    if rows and rows[-1] in ([""], ["\r"]):
        rows.pop()
    if not has_header:
        return rows, [], 1
    if not rows:
        raise InputError(f"{path}: is empty; expected a header with {task.sentence_a.name!r}")
    return rows[1:], [name.strip() for name in rows[0]], 2


def _number(path: str, column: Column, header: list[str]) -> int:
    if column.number is not None:
        return column.number
    if column.name not in header:
        raise InputError(f"{path}: no column {column.name!r}; its header names {', '.join(header)}")
    return header.index(column.name)


def _label_of(task: Task, path: str, line_number: int, text: str) -> float:
    if task.is_regression:
        try:
            return float(text)
        except ValueError as error:
            raise InputError(f"{path}:{line_number}: label {text!r} is not a number") from error
    if text not in task.labels:
        raise InputError(f"{path}:{line_number}: label {text!r} is none of {', '.join(task.labels)}")
    return float(task.labels.index(text))
