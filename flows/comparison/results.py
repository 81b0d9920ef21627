"""What came of a study: values by variant and seed, and their comparison with the first variant."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.comparison.shared_stages import seconds_of
from flows.comparison.study_file import Run, Study
from flows.parameters.whole_recipe import WholeRecipe
from flows.report import samples
from flows.report.cost import pretraining_flops
from flows.running.plan import Stage
from pipelines.contract.manifest import Manifest
from pipelines.contract.workspace import FINETUNING, PRETRAINED, PRETRAINING
from pipelines.statistics.metrics import HELDOUT_PREFIX, Metric
from pipelines.statistics.training import PretrainingStatistics, TrialStatistics

_TASK_LABEL = "{task}, {metric}"


@dataclass(frozen=True)
class RunResult:
    """One run. values: by measure; curves: held-out points (step, value) by metric."""

    run: Run
    values: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    flops: float = 0.0
    """Of pre-training, from the tokens, their mean length and the share of masked ones."""
    seconds: float | None = None
    """Of pre-training, with the start of its processes, or of fine-tuning if nothing was pre-trained; None if nothing
    recorded it."""
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    problem: str | None = None
    """Why there are no values."""


@dataclass(frozen=True)
class Cell:
    """A measure of a variant over its seeds; the difference is that to the first variant with the same seeds.

    deviation: sample standard deviation; difference_error: standard error of the mean of the paired differences; both
    need two seeds.
    """

    mean: float
    num_seeds: int
    deviation: float | None = None
    difference: float | None = None
    difference_error: float | None = None
    published: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The table of a study. cells: by measure and variant; a variant without a value has no cell."""

    measures: tuple[Metric, ...]
    variants: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Cell]]
    results: tuple[RunResult, ...]


def result_of(run: Run, whole: WholeRecipe, stages: Sequence[Stage]) -> tuple[RunResult, list[Metric]]:
    """Read the manifests of a complete run: its values, and what they measure."""
    metrics: list[Metric] = []
    values: dict[str, float] = {}
    for stage in stages:
        if stage.name == FINETUNING:
            for metric, score in _scores(stage.manifests()):
                metrics.append(metric)
                values[metric.name] = score
    pretraining = next((stage for stage in stages if stage.name == PRETRAINING), None)
    if pretraining is None:
        times = [seconds for stage in stages if (seconds := seconds_of(whole, stage)) is not None]
        return RunResult(run, values, seconds=sum(times) if times else None), metrics
    trained = pretraining.manifests()[PRETRAINING].statistics_as(PretrainingStatistics)
    metrics = [*trained.heldout_metrics, *metrics]
    values = {**trained.heldout, **values}
    names = [metric.name for metric in trained.heldout_metrics]
    found = samples.sampled(lambda: samples.curves(pretraining.outputs[0].directory, names))
    curves = {name: found[HELDOUT_PREFIX + name] for name in names if HELDOUT_PREFIX + name in found}
    flops, seconds = pretraining_flops(whole, trained), seconds_of(whole, pretraining)
    return RunResult(run, values, trained.tokens or 0, flops, seconds, curves), metrics


def _scores(manifests: Mapping[str, Manifest]) -> list[tuple[Metric, float]]:
    scores = []
    for name, manifest in manifests.items():
        task, _, start = name.rpartition("/")
        if start == PRETRAINED:
            trial = manifest.statistics_as(TrialStatistics)
            label = _TASK_LABEL.format(task=task, metric=trial.metric.replace("_", " "))
            scores.append((Metric(task, label, "share", more_is_better=True), trial.score))
    return scores


def compared(study: Study, results: Sequence[RunResult], metrics: Sequence[Metric]) -> Comparison:
    """Mean, deviation and paired differences of each measure and variant."""
    measures = tuple({metric.name: metric for metric in metrics}.values())
    by_variant: dict[str, dict[int, RunResult]] = {variant.name: {} for variant in study.variants}
    for result in results:
        if result.problem is None:
            by_variant[result.run.variant][result.run.seed] = result
    first = next(iter(by_variant.values()))
    published = {variant.name: variant.published for variant in study.variants}
    cells = {
        metric.name: {
            name: cell
            for name, own in by_variant.items()
            if (cell := _cell(metric.name, own, first, published[name].get(metric.name))) is not None
        }
        for metric in measures
    }
    return Comparison(measures, tuple(by_variant), cells, tuple(results))


def _cell(
    measure: str, own: Mapping[int, RunResult], first: Mapping[int, RunResult], published: float | None
) -> Cell | None:
    values = {seed: result.values[measure] for seed, result in own.items() if measure in result.values}
    if not values:
        return None
    pairs = [
        value - first[seed].values[measure]
        for seed, value in values.items()
        if seed in first and measure in first[seed].values
    ]
    is_first = own is first
    return Cell(
        statistics.mean(values.values()),
        len(values),
        statistics.stdev(values.values()) if len(values) > 1 else None,
        None if is_first or not pairs else statistics.mean(pairs),
        None if is_first or len(pairs) < 2 else statistics.stdev(pairs) / len(pairs) ** 0.5,
        published,
    )


def as_json(study: Study, comparison: Comparison) -> dict[str, Any]:
    """All figures, for study.json."""
    return {
        "study": study.config.name,
        "question": study.config.question,
        "base": study.config.base,
        "variants": {variant.name: list(variant.overrides) for variant in study.variants},
        "seeds": list(study.config.seeds),
        "measures": {metric.name: vars(metric) for metric in comparison.measures},
        "cells": {
            measure: {
                variant: {key: value for key, value in vars(cell).items() if value is not None}
                for variant, cell in cells.items()
            }
            for measure, cells in comparison.cells.items()
        },
        "runs": [
            {
                "variant": result.run.variant,
                "seed": result.run.seed,
                "values": dict(result.values),
                "tokens": result.tokens,
                "flops": result.flops,
                "seconds": result.seconds,
                "curves": {name: [list(point) for point in points] for name, points in result.curves.items()},
                **({"problem": result.problem} if result.problem else {}),
            }
            for result in comparison.results
        ],
    }
