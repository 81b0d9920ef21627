"""The stages trained by the loop of training/pretraining/run.py: one row each. Must not import torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pipelines.contract.recipe import Recipe
from pipelines.contract.workspace import DISTILLATION, PRETRAINING
from training.stages.continuing import Continuation, planned_start
from training.stages.distillation import DistillationInputs, distillation_inputs
from training.stages.pretraining import PretrainingInputs, pretraining_inputs
from training.stages.sections import DistillationSections, PretrainingSections


class ObjectiveRow(NamedTuple):
    """How to open a stage's objective from a recipe."""

    inputs: Callable[[Recipe], PretrainingInputs | DistillationInputs]
    opener: str
    """`module:function` that builds the objective from inputs and processes; imported if there is work to do."""
    start: Callable[[Any, str | None, str | None], tuple[PretrainingInputs, Continuation | None]] | None = None
    """Plans the start of a run for `--continue` and `--restart`; None if finished runs cannot be continued."""


def _pretraining(recipe: Recipe) -> PretrainingInputs:
    return pretraining_inputs(PretrainingSections.of(recipe))


def _distillation(recipe: Recipe) -> DistillationInputs:
    return distillation_inputs(DistillationSections.of(recipe))


OBJECTIVES = {
    PRETRAINING: ObjectiveRow(_pretraining, "training.pretraining.bert_objective:open_bert", planned_start),
    DISTILLATION: ObjectiveRow(_distillation, "training.distillation.objective:open_distillation"),
}
"""A new objective needs its own module, a row here, and a command with its recipe section."""
