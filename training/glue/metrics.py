"""GLUE's metrics, computed by scikit-learn and SciPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from training.glue.tasks import Task

Values = npt.NDArray[np.float64]


def _correlation(of: Callable[[Values, Values], tuple[float, float]]) -> Callable[[Values, Values], float]:
    def correlation(labels: Values, predictions: Values) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantInputWarning)
            value = float(of(labels, predictions)[0])
        # Undefined where all predictions are equal; that is no correlation.
        return 0.0 if math.isnan(value) else value

    return correlation


_METRICS: dict[str, Callable[[Values, Values], float]] = {
    "accuracy": lambda labels, predictions: float(accuracy_score(labels, predictions)),
    "f1": lambda labels, predictions: float(f1_score(labels, predictions, zero_division=0.0)),
    "matthews_correlation": lambda labels, predictions: float(matthews_corrcoef(labels, predictions)),
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
}


def scores(task: Task, labels: Values, predictions: Values) -> dict[str, float]:
    """All metrics of a task.

    Args:
        task: its `metrics` are computed.
        labels, predictions: [rows], class numbers or scores.
    """
    return {name: _METRICS[name](labels, predictions) for name in task.metrics}


def majority_baseline(task: Task, train_labels: Values, dev_labels: Values) -> float:
    """The task's own metric for always answering the most frequent training class, or the mean training score."""
    if task.is_regression:
        answer = float(train_labels.mean())
    else:
        values, counts = np.unique(train_labels, return_counts=True)
        answer = float(values[counts.argmax()])
    return _METRICS[task.metric](dev_labels, np.full_like(dev_labels, answer))
