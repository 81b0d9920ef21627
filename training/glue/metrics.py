"""GLUE's metrics by task, their baselines, and the two definitions of its average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from pipelines.contract.errors import InputError
from training.finetuning.metrics import METRICS, Values
from training.settings.glue import GLUE_TASKS, Task

Results = Mapping[str, Mapping[str, float]]
"""Metrics by the name of a submission file: {"CoLA": {"matthews_correlation": 0.52}, "MNLI-mm": {"accuracy": ...}}."""


def scores(task: Task, labels: Values, predictions: Values) -> dict[str, float]:
    """All metrics of a task.

    Args:
        task: its `metrics` and `also_reported` are computed.
        labels, predictions: [rows], class numbers or scores.
    """
    return {name: METRICS[name](labels, predictions) for name in (*task.metrics, *task.also_reported)}


def majority_baseline(task: Task, train_labels: Values, dev_labels: Values) -> float:
    """The task's own metric for always predicting the most frequent training class, or the mean training score."""
    if task.is_regression:
        answer = float(train_labels.mean())
    else:
        values, counts = np.unique(train_labels, return_counts=True)
        answer = float(values[counts.argmax()])
    return METRICS[task.metric](dev_labels, np.full_like(dev_labels, answer))


def constant_baseline(task: Task, dev_labels: Values) -> float:
    """The task's own metric for the best constant prediction; 0 for a correlation.

    For F1 that is the positive class, which need not be the majority class.
    """
    if task.is_regression:
        return 0.0
    return max(
        METRICS[task.metric](dev_labels, np.full_like(dev_labels, float(answer))) for answer in range(task.num_labels)
    )


def paper_average(results: Results, with_wnli: bool = False) -> float:
    """The column "Average" of the BERT paper's table 1: one metric per column, MNLI counted twice, without WNLI.

    Each task enters with its `metric` (F1 for QQP and MRPC, Spearman for STS-B, Matthews for CoLA, accuracy elsewhere).
    The paper does not state that MNLI-m and MNLI-mm are two of nine columns, but it follows from the rows: BERT-base's
    have the printed mean 79.6, and 79.05 with MNLI as one.

    Args:
        results: of all tasks; AX is ignored.
        with_wnli: count WNLI as a tenth column.

    Raises:
        InputError: a result is missing.

    Source: Devlin et al. 2019, section 4.1, table 1 and its caption.
    """
    return _mean(_value(results, name, task.metric) for task in _scored_tasks(with_wnli) for name in task.submissions)


def leaderboard_average(results: Results, with_wnli: bool = True) -> float:
    """The leaderboard's score: the mean over tasks, each the mean of its metrics and of its test sets.

    Reproduces BERT-large's score of 80.5 on the leaderboard; MNLI is one task of nine there.

    Args:
        results: of all tasks; AX is ignored.
        with_wnli: False leaves WNLI out.

    Raises:
        InputError: a result is missing.

    Source: Wang et al. 2019 (GLUE), section 3.4.
    """
    return _mean(
        _mean(_value(results, name, metric) for name in task.submissions for metric in task.metrics)
        for task in _scored_tasks(with_wnli)
    )


def _scored_tasks(with_wnli: bool) -> list[Task]:
    return [task for task in GLUE_TASKS if not task.predicted_by and (with_wnli or task.name != "wnli")]


def _value(results: Results, name: str, metric: str) -> float:
    if metric not in results.get(name, {}):
        raise InputError(f"GLUE's average needs {metric} of {name}, which has no result; finish that task first")
    return results[name][metric]


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)
