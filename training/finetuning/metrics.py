"""Metrics of classes and numbers, computed by scikit-learn and SciPy; more is better in all."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Values = npt.NDArray[np.float64]


def _correlation(of: Callable[[Values, Values], tuple[float, float]]) -> Callable[[Values, Values], float]:
    def correlation(labels: Values, predictions: Values) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantInputWarning)
            value = float(of(labels, predictions)[0])
        # Undefined if all predictions are equal; counts as no correlation.
        return 0.0 if math.isnan(value) else value

    return correlation


METRICS: dict[str, Callable[[Values, Values], float]] = {
    "accuracy": lambda labels, predictions: float(accuracy_score(labels, predictions)),
    "f1": lambda labels, predictions: float(f1_score(labels, predictions, zero_division=0.0)),
    "macro_f1": lambda labels, predictions: float(f1_score(labels, predictions, average="macro", zero_division=0.0)),
    "matthews_correlation": lambda labels, predictions: float(matthews_corrcoef(labels, predictions)),
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
}
"""From labels and predictions [rows], class numbers or scores; `f1` is that of class 1 against class 0."""
