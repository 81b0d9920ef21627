"""A cheap score of an encoder: a linear model on its frozen features, evaluated on dev rows.

Each sentence becomes the mean over its tokens. A pair (u, v) becomes [u, v, |u - v|, u * v] (InferSent, Conneau et al.
2017, section 3.1). Features are standardized by the training rows. The classifier is logistic regression, for scores
ridge regression; the strength of regularization is chosen on a fifth of the training rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from training.data.ordering import IntArray, keyed_permutation
from training.finetuning.metrics import Values
from training.glue.metrics import scores
from training.glue.reading import LabelledText
from training.settings.glue import Task

FloatArray = npt.NDArray[np.float32]

PENALTIES = (1e5, 1e4, 1e3, 1e2, 1e1, 1e0)
"""Weights of ||w||^2 / 2 relative to the summed loss over all rows, the strongest first; ties keep the stronger."""
HELDOUT_SHARE = 5
"""One training row in this many is held out to choose the penalty."""
_MAX_ITERATIONS = 1_000
_ROWS_AT_ONCE = 4_096


@dataclass(frozen=True)
class SentenceFeatures:
    """Features of a file's rows, computed on demand: those of pairs are four times as wide.

    vectors: [distinct sentences, D] float32; first, second: [rows] int64, indices of a row's sentences; second is None
    if the task has single sentences.
    """

    vectors: FloatArray
    first: IntArray
    second: IntArray | None

    def __len__(self) -> int:
        return len(self.first)

    def rows(self, chosen: IntArray) -> FloatArray:
        """[chosen, D] or, for pairs, [chosen, 4D]."""
        u_RD = self.vectors[self.first[chosen]]
        if self.second is None:
            return u_RD
        v_RD = self.vectors[self.second[chosen]]
        return np.concatenate([u_RD, v_RD, np.abs(u_RD - v_RD), u_RD * v_RD], axis=1)


def sentence_features(text: LabelledText, encode: Callable[[list[str]], FloatArray]) -> SentenceFeatures:
    """Encode each distinct sentence once; `encode` returns one vector per sentence."""
    numbers: dict[str, int] = {}
    both = (text.sentences_a, text.sentences_b)
    rows = [
        None
        if sentences is None
        else np.array([numbers.setdefault(sentence, len(numbers)) for sentence in sentences], dtype=np.int64)
        for sentences in both
    ]
    assert rows[0] is not None
    return SentenceFeatures(encode(list(numbers)), rows[0], rows[1])


def sampled(text: LabelledText, max_rows: int, *key: int | str) -> LabelledText:
    """At most `max_rows` rows, drawn by the key, in their original order."""
    if len(text) <= max_rows:
        return text
    chosen = np.sort(keyed_permutation(len(text), *key)[:max_rows])
    assert text.labels is not None
    return LabelledText(
        [text.sentences_a[row] for row in chosen],
        None if text.sentences_b is None else [text.sentences_b[row] for row in chosen],
        [text.labels[row] for row in chosen],
    )


@dataclass(frozen=True)
class ProbeResult:
    """metrics: the task's, on its dev rows; penalty: the chosen one; heldout: the task's metric that chose it.

    converged: False if the solver stopped at its iteration limit.
    """

    metrics: dict[str, float]
    penalty: float
    heldout: float
    converged: bool


def probe(
    task: Task,
    train: SentenceFeatures,
    train_labels: Values,
    dev: SentenceFeatures,
    dev_labels: Values,
    seed: int,
) -> ProbeResult:
    """Fit on the training rows and score on the dev rows.

    Args:
        task: determines the kind of labels and the metrics.
        train_labels, dev_labels: [rows], class numbers or scores.
        seed: draws the rows that choose the penalty.
    """
    order = keyed_permutation(len(train), seed, task.name, "probe held out")
    cut = max(1, len(train) // HELDOUT_SHARE)
    heldout, kept = order[:cut], order[cut:]
    best: tuple[float, float] | None = None
    kept_RD, heldout_RD = train.rows(kept), train.rows(heldout)
    for penalty in PENALTIES:
        model = _fitted(task, kept_RD, train_labels[kept], penalty)
        value = scores(task, train_labels[heldout], _predicted(model.predict, heldout_RD))[task.metric]
        if best is None or value > best[1]:
            best = (penalty, value)
    assert best is not None
    model = _fitted(task, train.rows(np.arange(len(train))), train_labels, best[0])
    parts = np.split(np.arange(len(dev)), range(_ROWS_AT_ONCE, len(dev), _ROWS_AT_ONCE))
    predictions = np.concatenate([_predicted(model.predict, dev.rows(part)) for part in parts])
    return ProbeResult(scores(task, dev_labels, predictions), best[0], best[1], model.converged)


@dataclass(frozen=True)
class _LinearModel:
    scaler: StandardScaler
    model: LogisticRegression | Ridge
    converged: bool

    def predict(self, features_RD: FloatArray) -> Values:
        predicted: Values = self.model.predict(self.scaler.transform(features_RD))
        return predicted


def _fitted(task: Task, features_RD: FloatArray, labels: Values, penalty: float) -> _LinearModel:
    scaler = StandardScaler()
    scaled_RD = scaler.fit_transform(features_RD)
    if task.is_regression:
        return _LinearModel(scaler, Ridge(alpha=penalty).fit(scaled_RD, labels), True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model = LogisticRegression(C=1.0 / penalty, max_iter=_MAX_ITERATIONS).fit(scaled_RD, labels)
    return _LinearModel(scaler, model, not any(issubclass(each.category, ConvergenceWarning) for each in caught))


def _predicted(predict: Callable[[FloatArray], Values], features_RD: FloatArray) -> Values:
    return np.asarray(predict(features_RD), dtype=np.float64)
