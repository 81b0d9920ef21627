"""The curve of a finished run, by tokens, that another run is compared with."""

from __future__ import annotations

import bisect
import json
import os
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, digest_of
from pipelines.contract.workspace import METRICS_NAME
from pipelines.statistics.metrics import HELDOUT_PREFIX
from pipelines.statistics.training import PretrainingStatistics

SHIPPED_DIRECTORY = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "reference_curves")
"""Curves that come with this project, as NAME.json."""
BAND = 0.05
"""A metric within this share of the reference is inside the band; a choice, not measured over seeds."""
OBSERVATIONS = 3
"""Progress lines in a row outside the band before it is said."""
_POINTS = 240
_SIGNIFICANT_DIGITS = 6

Points = tuple[tuple[float, float], ...]


class ReferenceCurve(BaseModel):
    """Metrics of a run by the tokens trained so far."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    about: str
    """The text that the run was trained on, in words."""
    recipe_digest: str
    """Of the settings and the model; a run of the same recipe on the same text follows the curve."""
    settings: dict[str, object]
    """What the digest is of."""
    curves: dict[str, Points]
    """Points (tokens, value), ascending, by metric; those of held-out examples begin with `heldout_`."""

    def at(self, metric: str, tokens: float) -> float | None:
        """The metric at this number of tokens, linear between points; None outside the curve."""
        points = self.curves.get(metric, ())
        place = bisect.bisect_left(points, (tokens, float("-inf")))
        if place < len(points) and points[place][0] == tokens:
            return points[place][1]
        if not 0 < place < len(points):
            return None
        (x_0, y_0), (x_1, y_1) = points[place - 1], points[place]
        return y_0 + (y_1 - y_0) * (tokens - x_0) / (x_1 - x_0)


class ReferenceRule:
    """Whether a metric has left the band around a reference."""

    def __init__(self, curve: ReferenceCurve, metric: str) -> None:
        self._curve, self._metric = curve, metric
        self._outside = 0

    def observe(self, metrics: Mapping[str, float]) -> str:
        """The alarm of a progress line, empty inside the band."""
        expected = self._curve.at(self._metric, metrics.get("tokens", 0.0))
        value = metrics.get(self._metric)
        if expected is None or value is None:
            return ""
        self._outside = self._outside + 1 if abs(value - expected) > BAND * abs(expected) else 0
        if self._outside < OBSERVATIONS:
            return ""
        side = "above" if value > expected else "below"
        return (
            f"{self._metric} {value:.3f} is {side} the band of {BAND:.0%} around the reference {self._curve.name}, "
            f"which has {expected:.3f} at {metrics['tokens']:,.0f} tokens ({self._outside} lines in a row): compare "
            "recipe, text and vocabulary with those of the reference"
        )


def read_reference(source: str) -> ReferenceCurve:
    """Read a curve.

    Args:
        source: a JSON file of `clozeworks curve`, or the name of a curve that comes with this project.

    Raises:
        InputError: there is no such curve, or the file is no curve.
    """
    shipped = os.path.join(SHIPPED_DIRECTORY, f"{source}.json")
    uri = shipped if "/" not in source and os.path.isfile(shipped) else source
    if storage.file_size_bytes(uri) is None:
        names = sorted(name.removesuffix(".json") for name in os.listdir(SHIPPED_DIRECTORY) if name.endswith(".json"))
        there = ", ".join(names) or "none does"
        raise InputError(f"{source}: no such file, and no curve of this name comes with Clozeworks ({there})")
    try:
        return ReferenceCurve.model_validate_json(storage.read_bytes(uri))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise InputError(
            f"{uri}: no reference curve ({place}: {problem['msg']}); write one with clozeworks curve"
        ) from error


def curve_of(name: str, about: str, directory: str, manifest: Manifest, examples: Manifest) -> ReferenceCurve:
    """The curve of a finished pre-training.

    Args:
        name, about: of the curve.
        directory: of the pre-training, with its metrics.
        manifest, examples: of the pre-training, and of the examples that it read.
    """
    trained = manifest.statistics_as(PretrainingStatistics)
    names = [prefix + metric.name for metric in trained.metrics for prefix in ("", HELDOUT_PREFIX)]
    series: dict[str, dict[float, float]] = {each: {} for each in names}
    for line in storage.read_bytes(storage.join(directory, METRICS_NAME)).splitlines():
        record = json.loads(line)
        for each in series.keys() & record.keys():
            series[each][record["tokens"]] = float(f"{record[each]:.{_SIGNIFICANT_DIGITS}g}")
    settings = {**manifest.config, "examples": examples.config}
    return ReferenceCurve(
        name=name,
        about=about,
        recipe_digest=digest_of(settings),
        settings=settings,
        curves={each: _thinned(sorted(points.items())) for each, points in series.items() if points},
    )


def _thinned(points: list[tuple[float, float]]) -> Points:
    """At most _POINTS points, evenly spaced, the first and the last included."""
    if len(points) <= _POINTS:
        return tuple(points)
    return tuple(points[place * (len(points) - 1) // (_POINTS - 1)] for place in range(_POINTS))
