"""Scores of a table's predictions, and of the best answers that are always the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from training.finetuning.metrics import METRICS as OF_CLASSES
from training.finetuning.metrics import Values
from training.settings.tables import POSITIVE_METRIC, TableConfig
from training.tables.labels import Names, Targets

_OF_SETS: dict[str, Callable[[Values, Values], float]] = {
    "micro_f1": lambda targets, answers: float(f1_score(targets, answers, average="micro", zero_division=0.0)),
    "macro_f1": lambda targets, answers: float(f1_score(targets, answers, average="macro", zero_division=0.0)),
    "exact_match": lambda targets, answers: float(accuracy_score(targets, answers)),
}
"""From 0/1 matrices [rows, labels]."""


def scores(table: TableConfig, names: Names, targets: Targets, answers: Targets) -> dict[str, float]:
    """All metrics of a table.

    Args:
        table: its kind decides the metrics, and its positive label what F1 is of.
        names: of the labels.
        targets, answers: class numbers [rows], 0/1 matrices [rows, labels], or numbers [rows], by kind.
    """
    return {metric: _score(metric, table, names, targets, answers) for metric in table.metrics}


def majority_baseline(table: TableConfig, names: Names, train: Targets, dev: Targets) -> float:
    """The table's metric for always giving the most frequent training label or set of labels, or the mean number."""
    if table.kind == "regression":
        answer = train.mean()
    else:
        answer = np.array(Counter(map(_hashable, train)).most_common(1)[0][0])
    return _score(table.judged_by, table, names, dev, _repeated(answer, dev))


def constant_baseline(table: TableConfig, names: Names, dev: Targets) -> float:
    """The table's metric for the best constant answer; 0 for a correlation.

    With several labels per row the answers that are tried are the most frequent labels, one, two and so on, which has
    the best F1 among them, and the most frequent set, which has the best share of exact matches.
    """
    if table.kind == "regression":
        return 0.0
    answers = map(np.array, _sets(dev) if table.kind == "multi" else range(len(names)))
    return max(_score(table.judged_by, table, names, dev, _repeated(answer, dev)) for answer in answers)


def scores_by_label(names: Names, targets: Targets, answers: Targets) -> dict[str, dict[str, float]]:
    """precision, recall, f1 and the number of rows of each label."""
    classes = np.arange(len(names))
    columns = precision_recall_fscore_support(targets, answers, labels=classes, average=None, zero_division=0.0)
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "rows": int(rows)}
        for name, precision, recall, f1, rows in zip(names, *columns, strict=True)
    }


def _score(metric: str, table: TableConfig, names: Names, targets: Targets, answers: Targets) -> float:
    if table.kind == "multi":
        return _OF_SETS[metric](targets, answers)
    if metric == POSITIVE_METRIC and table.positive_label is not None:
        positive = names.index(table.positive_label)
        targets, answers = ((values == positive).astype(np.float64) for values in (targets, answers))
    return OF_CLASSES[metric](targets, answers)


def _repeated(answer: Targets, like: Targets) -> Targets:
    return np.broadcast_to(answer, like.shape).astype(np.float64)


def _sets(dev: Targets) -> Iterator[Targets]:
    yield np.array(Counter(map(_hashable, dev)).most_common(1)[0][0])
    by_frequency = np.argsort(-dev.sum(axis=0), kind="stable")
    for count in range(1, len(by_frequency) + 1):
        answer = np.zeros(len(by_frequency))
        answer[by_frequency[:count]] = 1.0
        yield answer


def _hashable(target: Targets) -> object:
    return tuple(target.tolist()) if np.ndim(target) else float(target)
