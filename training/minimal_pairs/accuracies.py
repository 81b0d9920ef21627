"""Accuracies on minimal pairs, with standard errors: per group, per field and overall."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.minimal_pairs.pairs import MinimalPairs

TIE_NATS = 1e-5
"""Scores that differ by less are equal: sums of some ten float32 numbers are not more exact."""


@dataclass(frozen=True)
class Accuracy:
    """The share of pairs whose good sentence has the higher score; a tie counts half."""

    accuracy: float
    standard_error: float
    pairs: int
    ties: int


@dataclass(frozen=True)
class Accuracies:
    """groups: BLiMP's paradigms, in the order of the pairs; fields: means over their groups; overall: over all groups.

    The mean over groups is BLiMP's: with as many pairs in each it is that over the pairs.
    """

    overall: Accuracy
    fields: dict[str, Accuracy]
    groups: dict[str, Accuracy]

    def as_json(self) -> dict[str, Any]:
        """All figures as JSON's types."""
        return asdict(self)


def accuracies(
    pairs: MinimalPairs, good_scores: npt.NDArray[np.float64], bad_scores: npt.NDArray[np.float64]
) -> Accuracies:
    """Compare the scores of each pair; both arrays are [pairs]."""
    difference = good_scores - bad_scores
    points = np.where(np.abs(difference) < TIE_NATS, 0.5, (difference > 0).astype(np.float64))
    rows_of: dict[str, list[int]] = {}
    field_of: dict[str, str] = {}
    for row, (group, field) in enumerate(zip(pairs.group, pairs.field, strict=True)):
        rows_of.setdefault(group, []).append(row)
        field_of[group] = field
    groups = {group: _of_points(points[rows]) for group, rows in rows_of.items()}
    fields: dict[str, list[Accuracy]] = {}
    for group, field in field_of.items():
        if field:
            fields.setdefault(field, []).append(groups[group])
    return Accuracies(
        _mean(list(groups.values())), {field: _mean(found) for field, found in sorted(fields.items())}, groups
    )


def _of_points(points: npt.NDArray[np.float64]) -> Accuracy:
    count = len(points)
    error = float(points.std()) / math.sqrt(count)
    return Accuracy(float(points.mean()), error, count, int((points == 0.5).sum()))


def _mean(groups: list[Accuracy]) -> Accuracy:
    error = math.sqrt(sum(group.standard_error**2 for group in groups)) / len(groups)
    mean = sum(group.accuracy for group in groups) / len(groups)
    return Accuracy(mean, error, sum(group.pairs for group in groups), sum(group.ties for group in groups))


def table(found: Accuracies) -> str:
    """All figures as lines, for a terminal."""
    width = max(len(name) for name in ("minimal pairs", *found.groups, *found.fields))
    lines = [f"{'minimal pairs':<{width}} {'pairs':>7} {'ties':>5} {'accuracy':>9} {'error':>7}"]
    for name, one in (*found.groups.items(), *found.fields.items(), ("overall", found.overall)):
        lines.append(f"{name:<{width}} {one.pairs:>7} {one.ties:>5} {one.accuracy:>9.4f} {one.standard_error:>7.4f}")
    return "\n".join(lines)
