"""Labels of a table: their names from the training rows, and each row's class, set of classes, or number."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown
from training.settings.tables import TableConfig
from training.tables.rows import Cell, Columns

Names = tuple[str, ...]
Targets = npt.NDArray[np.float64]
"""Class numbers [rows], a 0/1 matrix [rows, labels], or numbers [rows], by the table's kind."""

SCORE = "score"
"""Name of the only output of a regression."""

_WHOLE = re.compile(r"-?\d{1,4000}")
"""Python converts up to 4,300 digits."""

_FRACTION = re.compile(r"-?\d*\.\d*[1-9]\d*(e[-+]?\d+)?", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")
_FEW = 20
_SHOWN_LABELS, _SHOWN_CHARACTERS = 10, 60


def label_names(train: Columns, table: TableConfig) -> Names:
    """Names of the labels, in the order of the class numbers.

    The order is that of the file where it names its classes (ClassLabel); otherwise whole numbers are sorted by value
    and all others as text. Class names that no training row has are kept.

    Raises:
        InputError: a label is missing or is none of a name, or there are fewer than two labels, or nearly as many as
            rows.
    """
    if table.kind == "regression":
        return (SCORE,)
    found = Counter(name for row in range(len(train)) for name in _names_in(train, table, row))
    stated = train.class_names.get(table.label, ())
    names = stated or tuple(sorted(found, key=_numeric if all(map(_WHOLE.fullmatch, found)) else str))
    where = f"{train.path}: column {table.label!r}"
    if len(set(names)) < len(names):
        raise InputError(f"{where} names two of its classes alike; rename one")
    if len(names) < 2:
        only = f"only the label {in_brief(names)}" if names else "no label"
        raise InputError(f"{where} has {only}; a classifier needs two labels or more")
    if table.kind == "single" and not stated:
        _require_classes(names, len(train), where)
    _require_known(table, names, where)
    return names


def targets_of(columns: Columns, table: TableConfig, names: Names, train_path: str) -> Targets:
    """Each row's label.

    Args:
        columns: with the label column.
        table: the settings.
        names: from `label_names`.
        train_path: named where a label is in none of its rows.

    Raises:
        InputError: a label is missing, is not one of `names` or, for regression, is not a finite number.
    """
    if table.kind == "regression":
        return np.array([_number(columns, table, row) for row in range(len(columns))], dtype=np.float64)
    numbers = {name: number for number, name in enumerate(names)}
    matrix = np.zeros((len(columns), len(names)), dtype=np.float64)
    for row in range(len(columns)):
        for name in _names_in(columns, table, row):
            if name not in numbers:
                raise InputError(
                    f"{columns.place(row)}: label {_shown(name)} is in no row of {train_path}, which has "
                    f"{in_brief(names)}; correct it, or add training rows with it"
                )
            matrix[row, numbers[name]] = 1.0
    return matrix if table.kind == "multi" else matrix.argmax(axis=1).astype(np.float64)


def has_labels(columns: Columns, table: TableConfig) -> bool:
    """Whether any row has a label; a test file may have none."""
    return any(not _is_missing(cell) for cell in columns.cells.get(table.label, []))


def label_weights(table: TableConfig, names: Names, targets: Targets) -> Targets | None:
    """Weights [labels] of the loss; None if all are 1.

    `balance_labels` with one label per row is rows / (labels * rows of the label), as in scikit-learn's "balanced";
    with several, the weight of a label's presence is rows without it / rows with it, as in PyTorch's documentation of
    BCEWithLogitsLoss. A label without training rows gets 1.
    """
    if table.class_weights:
        weights = {each.label: each.weight for each in table.class_weights}
        return np.array([weights.get(name, 1.0) for name in names])
    if not table.balance_labels:
        return None
    if table.kind == "multi":
        counts = targets.sum(axis=0)
        return np.where((counts > 0) & (counts < len(targets)), (len(targets) - counts) / np.maximum(counts, 1), 1.0)
    counts = np.bincount(targets.astype(np.int64), minlength=len(names))
    return np.where(counts > 0, len(targets) / ((counts > 0).sum() * np.maximum(counts, 1)), 1.0)


def in_brief(names: Sequence[str]) -> str:
    """The first labels, and how many more there are."""
    listed = ", ".join(_shown(name) for name in names[:_SHOWN_LABELS])
    return listed if len(names) <= _SHOWN_LABELS else f"{listed} and {len(names) - _SHOWN_LABELS:,} more"


def _require_classes(names: Names, num_rows: int, where: str) -> None:
    if sum(bool(_FRACTION.fullmatch(name)) for name in names) * 2 > len(names):
        raise InputError(f"{where} has numbers with a fraction, {in_brief(names)}; set kind = 'regression'")
    if len(names) > _FEW and len(names) * 2 > num_rows:
        raise InputError(
            f"{where} has {len(names):,} different values in {num_rows:,} rows, {in_brief(names)}; name the column "
            "with the labels, or set kind = 'regression' for numbers and kind = 'multi' for several labels in a cell"
        )


def _require_known(table: TableConfig, names: Names, where: str) -> None:
    """Check the labels that the settings name."""
    named = {"positive_label": [table.positive_label] if table.positive_label is not None else []}
    named["class_weights"] = [each.label for each in table.class_weights]
    for key, labels in named.items():
        for label in labels:
            if label not in names:
                raise InputError(f"{where} has no label {_shown(label)}, which {key} names; it has {in_brief(names)}")


def _names_in(columns: Columns, table: TableConfig, row: int) -> list[str]:
    """The names in a row's cell: one, or any number if kind = "multi"."""
    cell = columns.cells[table.label][row]
    if table.kind == "single":
        if isinstance(cell, list):
            raise InputError(f"{columns.place(row)}: column {table.label!r} is a list; set kind = 'multi' for lists")
        return [_name(columns, table, row, cell)]
    if isinstance(cell, str):
        cell = cell.split(table.label_separator) if cell.strip() else []
        if any(not each.strip() for each in cell):
            raise InputError(
                f"{columns.place(row)}: column {table.label!r} has an empty label between or after separators "
                f"{table.label_separator!r}; remove the separator, or set label_separator"
            )
    if cell is None:
        _refuse_missing(columns, table, row)
    cells = cell if isinstance(cell, list) else [cell]
    return [_name(columns, table, row, each) for each in cells]


def _name(columns: Columns, table: TableConfig, row: int, cell: Cell) -> str:
    if _is_missing(cell):
        _refuse_missing(columns, table, row)
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, Decimal):
        return str(int(cell)) if cell == cell.to_integral_value() else str(cell.normalize())
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() else str(cell)
    if isinstance(cell, (str, int)):
        name = str(cell).strip()
        if _SURROGATE.search(name):
            raise InputError(f"{columns.place(row)}: column {table.label!r} has half a surrogate pair; remove it")
        return name
    kind = type(cell).__name__
    raise InputError(f"{columns.place(row)}: column {table.label!r} has a {kind}; labels are text or numbers")


def _number(columns: Columns, table: TableConfig, row: int) -> float:
    cell = columns.cells[table.label][row]
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        _refuse_missing(columns, table, row)
    try:
        value = math.nan if isinstance(cell, (bool, list, dict)) else float(cell)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        shown_cell = shown(repr(cell), _SHOWN_CHARACTERS)
        raise InputError(f"{columns.place(row)}: {shown_cell} in column {table.label!r} is not a finite number; fix it")
    return value


def _refuse_missing(columns: Columns, table: TableConfig, row: int) -> NoReturn:
    raise InputError(
        f"{columns.place(row)}: no label in column {table.label!r}; give each row a label, or remove the row"
    )


def _is_missing(cell: Cell) -> bool:
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _numeric(name: str) -> tuple[int, str]:
    return int(name), name


def _shown(name: str) -> str:
    return shown(repr(name), _SHOWN_CHARACTERS)
