"""Predictions of a table's rows: probabilities, answers, and the file that holds them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.settings.tables import TableConfig
from training.tables.labels import Names, Targets
from training.tables.reading import LabelledRows

Outputs = npt.NDArray[np.float64]
"""A model's outputs [rows, labels], or [rows, 1] for regression."""

_DECIMALS = 6


def answers_of(table: TableConfig, outputs: Outputs) -> Targets:
    """Answers from a model's logits: class numbers, a 0/1 matrix by the threshold, or numbers."""
    if table.kind == "regression":
        return outputs.reshape(-1)
    if table.kind == "single":
        classes: Targets = outputs.argmax(axis=1).astype(np.float64)
        return classes
    return np.where(probabilities_of(table, outputs) >= table.threshold, 1.0, 0.0)


def probabilities_of(table: TableConfig, outputs: Outputs) -> Outputs:
    """Probabilities [rows, labels] from logits: by softmax with one label per row, by sigmoids with several."""
    logits = torch.from_numpy(outputs)
    shares: Outputs = (logits.softmax(1) if table.kind == "single" else logits.sigmoid()).numpy()
    return shares


def prediction_lines(table: TableConfig, names: Names, rows: LabelledRows, outputs: Outputs) -> bytes:
    """One JSON object per row, in the file's order.

    `line` or `row` is its number in the file, `label` (a name, a list of names, or a number) what the file says, if it
    says anything, and `prediction` what the model says; `probabilities` has each label's name, except for regression.
    """
    answers = answers_of(table, outputs)
    return "".join(
        f"{json.dumps(line, ensure_ascii=False)}\n" for line in _lines(table, names, rows, outputs, answers)
    ).encode()


def _lines(
    table: TableConfig, names: Names, rows: LabelledRows, outputs: Outputs, answers: Targets
) -> Iterator[dict[str, Any]]:
    number_name = "line" if rows.columns.counts_lines else "row"
    shares = None if table.kind == "regression" else probabilities_of(table, outputs)
    for index, number in enumerate(rows.columns.numbers):
        line: dict[str, Any] = {number_name: number}
        if rows.targets is not None:
            line["label"] = _named(table, names, rows.targets[index])
        line["prediction"] = _named(table, names, answers[index])
        if shares is not None:
            line["probabilities"] = dict(zip(names, np.round(shares[index], _DECIMALS).tolist(), strict=True))
        yield line


def _named(table: TableConfig, names: Names, answer: Any) -> str | list[str] | float:
    if table.kind == "regression":
        return round(float(answer), _DECIMALS)
    if table.kind == "single":
        return names[int(answer)]
    return [name for name, given in zip(names, answer.tolist(), strict=True) if given]
