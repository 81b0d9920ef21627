"""Checks a submission against the requirements of gluebenchmark.com; one line per problem.

The format is that of the benchmark's FAQ: a zip with one tab-separated file per test set, a header `index prediction`,
rows numbered from 0, label words for MNLI, QNLI, RTE and AX, 0 or 1 for the other classes, numbers for STS-B.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from training.glue.archives import UNREADABLE_ZIP
from training.settings.glue import GLUE_TASKS, MAX_SCORE, Task

HEADER = "index\tprediction"

SUBMITTED: dict[str, Task] = {name: task for task in GLUE_TASKS for name in task.submissions}
"""The task of each file of a submission, by the file's name without .tsv; the zip holds them in this order."""


def rows_of(name: str) -> int:
    """Rows of the test set of a submission's file."""
    task = SUBMITTED[name]
    return task.published_rows[task.submission_files[name]]


def archive_problems(path: str) -> list[str]:
    """All problems of a submission's zip, one line each; empty if it is valid.

    Raises:
        InputError: it is missing or not a readable zip.
    """
    if storage.file_size_bytes(path) is None:
        raise InputError(f"{path}: missing; create it with clozeworks glue submit --predictions DIR")
    problems = []
    try:
        with zipfile.ZipFile(io.BytesIO(storage.read_bytes(path))) as archive:
            names = archive.namelist()
            wanted = {f"{name}.tsv": name for name in SUBMITTED}
            for file in dict.fromkeys(names):
                if file not in wanted:
                    problems.append(f"{path}: has {file}, which is not one of the {len(wanted)} files of a submission")
                elif names.count(file) > 1:
                    problems.append(f"{path}: has {file} {names.count(file)} times")
            for file, name in wanted.items():
                if file in names:
                    problems += table_problems(name, file, archive.read(file))
                else:
                    problems.append(f"{path}: has no {file}, but the server needs all {len(wanted)} files")
    except UNREADABLE_ZIP as error:
        raise InputError(f"{path}: not a readable zip ({error})") from error
    return problems


def table_problems(name: str, path: str, data: bytes) -> list[str]:
    """All problems of one file of predictions: one line per kind of problem, with the first row that has it.

    Args:
        name: the file's name in a submission, without .tsv.
        path: shown in the lines.
        data: content of the file.
    """
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        return [f"{path}: not UTF-8 at byte {error.start}"]
    if lines[-1] == "":
        lines.pop()
    if not lines:
        return [f"{path}: is empty; expected the header {HEADER!r} and {rows_of(name)} rows"]
    problems = []
    if lines[0] != HEADER:
        problems.append(f"{path}:1: header is {lines[0][:60]!r}; expected {HEADER!r}")
    rows = [line.split("\t") for line in lines[1:]]
    if len(rows) != rows_of(name):
        problems.append(f"{path}: has {len(rows):,} rows; the test set of {name} has {rows_of(name):,}")
    misshapen = [number for number, row in enumerate(rows) if len(row) != 2]
    if misshapen:
        return [*problems, _line(path, misshapen, lambda number: f"has {len(rows[number])} columns; expected 2")]
    misnumbered = [number for number, row in enumerate(rows) if row[0] != str(number)]
    if misnumbered:
        problems.append(_line(path, misnumbered, lambda number: f"index is {rows[number][0]!r}; expected {number}"))
    task = SUBMITTED[name]
    known: dict[str, bool] = {}
    for row in rows:
        if row[1] not in known:
            known[row[1]] = _is_answer(task, row[1])
    unknown = [number for number, row in enumerate(rows) if not known[row[1]]]
    if unknown:
        expected = f"a number from 0 to {MAX_SCORE:g}" if task.is_regression else f"one of {', '.join(task.labels)}"
        problems.append(_line(path, unknown, lambda number: f"prediction is {rows[number][1]!r}; expected {expected}"))
    return problems


def _line(path: str, rows: list[int], what: Callable[[int], str]) -> str:
    """The problem of the first of these rows, and how many more have it. Row 0 is in line 2 of the file."""
    more = f" (and {len(rows) - 1:,} more rows)" if len(rows) > 1 else ""
    return f"{path}:{rows[0] + 2}: {what(rows[0])}{more}"


def _is_answer(task: Task, text: str) -> bool:
    if not task.is_regression:
        return text in task.labels
    # float() would also take spaces and 1_0.
    if not set(text) <= set("0123456789.eE+-"):
        return False
    try:
        return 0.0 <= float(text) <= MAX_SCORE
    except ValueError:
        return False
