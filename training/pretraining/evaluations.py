"""Measurements of a model in training that are no sums over held-out rows: each is a row of EVALUATIONS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from pipelines.statistics.metrics import Metric
from training.engine.processes import Processes
from training.resuming.progress import Progress
from training.settings.tasks import load
from training.stages.pretraining import PretrainingInputs


class Evaluation(Protocol):
    """One kind of measurement. metric: what it adds to the held-out metrics. name: its entry in the statistics."""

    metric: Metric
    name: str
    every_steps: int | None

    def measure(self, weights: Mapping[str, torch.Tensor]) -> float:
        """The metric of a model with these weights; called by all ranks, with the same result on each."""
        ...

    def statistics(self) -> dict[str, Any]:
        """Details of the last measurement, for the manifest."""
        ...

    def in_words(self) -> str:
        """The last measurement in a line."""
        ...


EVALUATIONS = {"minimal_pairs": "training.minimal_pairs.during_training:open_pairs"}
"""Setting of `[pretraining]` -> `module:function` that opens it from inputs and processes.

The modules are above this room, so they are imported by name, and only where the setting is given.
"""


def open_evaluations(inputs: PretrainingInputs, processes: Processes) -> tuple[Evaluation, ...]:
    """The evaluations that the recipe sets, with their data read and checked.

    Raises:
        InputError: the data of one cannot be read or does not fit.
    """
    opened = []
    for setting, opener in EVALUATIONS.items():
        if getattr(inputs.pretraining, setting) is not None:
            opened.append(load(opener)(inputs, processes))
    return tuple(opened)


def measured(
    evaluations: tuple[Evaluation, ...],
    weights: Callable[[], Mapping[str, torch.Tensor]],
    progress: Progress,
    num_phases: int,
) -> dict[str, float]:
    """The metrics of those that are due: before the first step, at their own steps, and at the end."""
    is_edge = progress.step == 0 or progress.phase == num_phases
    due = [each for each in evaluations if is_edge or progress.step % (each.every_steps or 1) == 0]
    if not due:
        return {}
    state = weights()
    return {each.metric.name: each.measure(state) for each in due}
