"""Accuracies of known scores: ties, standard errors, means over groups."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.minimal_pairs.accuracies import TIE_NATS, accuracies, table
from training.minimal_pairs.pairs import MinimalPairs


def pairs_of(groups: list[str], fields: list[str]) -> MinimalPairs:
    texts = [str(number) for number in range(len(groups))]
    return MinimalPairs(texts, texts, groups, fields, texts)


def test_a_tie_counts_half() -> None:
    pairs = pairs_of(["a"] * 100, ["x"] * 100)
    equal = np.linspace(-50.0, -1.0, 100)
    found = accuracies(pairs, equal, equal + TIE_NATS / 2)
    assert found.overall.accuracy == 0.5
    assert (found.overall.ties, found.overall.pairs) == (100, 100)


def test_standard_errors_are_those_of_a_share_and_of_a_mean_of_shares() -> None:
    pairs = pairs_of(["a"] * 4 + ["b"] * 2, ["x"] * 4 + ["y"] * 2)
    good = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    found = accuracies(pairs, good, np.full(6, 0.5))
    a, b = found.groups["a"], found.groups["b"]
    assert (a.accuracy, b.accuracy) == (0.75, 0.5)
    assert a.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert b.standard_error == pytest.approx(math.sqrt(0.5 * 0.5 / 2))
    assert found.overall.accuracy == (0.75 + 0.5) / 2, "groups weigh the same, however many pairs they have"
    assert found.overall.standard_error == pytest.approx(math.hypot(a.standard_error, b.standard_error) / 2)
    assert found.fields["x"].accuracy == 0.75
    assert table(found).splitlines()[-1].split() == [
        "overall",
        "6",
        "0",
        "0.6250",
        f"{found.overall.standard_error:.4f}",
    ]


def test_pairs_without_fields_have_none() -> None:
    assert accuracies(pairs_of(["a"], [""]), np.array([1.0]), np.array([0.0])).fields == {}
