"""Scores of tables against scikit-learn on random answers, and baselines against trying every constant answer."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics

from training.settings.tables import METRICS, Kind, TableConfig
from training.tables.scores import constant_baseline, majority_baseline, scores, scores_by_label

NAMES = ("a", "b", "c")
RANDOM = np.random.default_rng(3)


def table_of(kind: Kind, **settings: Any) -> TableConfig:
    return TableConfig(name="t", train_file="t.csv", dev_share=0.1, kind=kind, **settings)


def test_one_label_a_row() -> None:
    gold, answers = RANDOM.integers(0, 3, (2, 200)).astype(float)
    found = scores(table_of("single", positive_label="b"), NAMES, gold, answers)
    assert found == {
        "accuracy": metrics.accuracy_score(gold, answers),
        "macro_f1": metrics.f1_score(gold, answers, average="macro"),
        "f1": metrics.f1_score(gold == 1, answers == 1),
        "matthews_correlation": metrics.matthews_corrcoef(gold, answers),
    }
    assert set(scores(table_of("single"), NAMES, gold, answers)) == set(METRICS["single"]) - {"f1"}
    by_label = scores_by_label(NAMES, gold, answers)
    report = metrics.classification_report(gold, answers, target_names=NAMES, output_dict=True)
    for name in NAMES:
        assert by_label[name]["f1"] == report[name]["f1-score"]
        assert by_label[name]["rows"] == report[name]["support"]


def test_several_labels_a_row() -> None:
    gold, answers = (RANDOM.random((2, 200, 3)) < 0.4).astype(float)
    assert scores(table_of("multi", metric="macro_f1"), NAMES, gold, answers) == {
        "macro_f1": metrics.f1_score(gold, answers, average="macro"),
        "micro_f1": metrics.f1_score(gold, answers, average="micro"),
        "exact_match": (gold == answers).all(axis=1).mean(),
    }
    nothing = np.zeros_like(gold)
    assert set(scores(table_of("multi"), NAMES, gold, nothing).values()) == {0.0, (gold == 0).all(axis=1).mean()}


def test_numbers() -> None:
    gold, answers = RANDOM.random((2, 200))
    expected = {"spearman": spearmanr(gold, answers)[0], "pearson": pearsonr(gold, answers)[0]}
    assert scores(table_of("regression"), ("score",), gold, answers) == pytest.approx(expected)
    assert set(scores(table_of("regression"), ("score",), gold, np.ones(200)).values()) == {0.0}
    assert constant_baseline(table_of("regression"), ("score",), gold) == 0.0


@pytest.mark.parametrize("metric", METRICS["multi"])
def test_the_best_constant_set_is_found(metric: str) -> None:
    for seed in range(5):
        shares = np.random.default_rng(seed).random(3)
        dev = (np.random.default_rng(seed + 9).random((60, 3)) < shares).astype(float)
        table = table_of("multi", metric=metric)
        answers = (np.broadcast_to(np.array(answer, dtype=float), dev.shape) for answer in product((0, 1), repeat=3))
        best = max(scores(table, NAMES, dev, answer)[metric] for answer in answers)
        assert constant_baseline(table, NAMES, dev) == pytest.approx(best)


def test_majority_is_that_of_the_training_rows() -> None:
    train, dev = np.array([2.0, 2.0, 0.0]), np.array([0.0, 0.0, 2.0, 1.0])
    assert majority_baseline(table_of("single"), NAMES, train, dev) == 0.25
    assert constant_baseline(table_of("single"), NAMES, dev) == 0.5
    sets = np.array([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert majority_baseline(table_of("multi", metric="exact_match"), NAMES, sets, sets) == pytest.approx(2 / 3)
