"""The stages trained by the loop of training/pretraining/run.py: one row each. Must not import torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pipelines.contract.recipe import Recipe
from pipelines.contract.workspace import DISTILLATION, PRETRAINING
from training.settings.model import Attention
from training.stages.continuing import Continuation, planned_start
from training.stages.distillation import DistillationInputs, distillation_inputs
from training.stages.pretraining import PretrainingInputs, pretraining_inputs
from training.stages.sections import DistillationSections, PretrainingSections


class ObjectiveRow(NamedTuple):
    """How to open a stage's objective from a recipe."""

    inputs: Callable[[Recipe], PretrainingInputs | DistillationInputs]
    opener: Callable[[Any], str]
    """From inputs to the `module:function` that builds the objective from inputs and processes; imported if there is
    work to do."""
    start: Callable[[Any, str | None, str | None], tuple[PretrainingInputs, Continuation | None]] | None = None
    """Plans the start of a run for `--continue` and `--restart`; None if finished runs cannot be continued."""


def _pretraining(recipe: Recipe) -> PretrainingInputs:
    return pretraining_inputs(PretrainingSections.of(recipe))


def _distillation(recipe: Recipe) -> DistillationInputs:
    return distillation_inputs(DistillationSections.of(recipe))


PRETRAINING_OBJECTIVES: dict[Attention, str] = {
    "bidirectional": "training.pretraining.bert_objective:open_bert",
    "left_to_right": "training.pretraining.next_token_objective:open_next_token",
    "two_directions": "training.pretraining.next_token_objective:open_next_token",
}
"""What pre-training trains, by `model.attention`: a new objective needs its own module and a row here."""

OBJECTIVES = {
    PRETRAINING: ObjectiveRow(
        _pretraining, lambda inputs: PRETRAINING_OBJECTIVES[inputs.model.attention], planned_start
    ),
    DISTILLATION: ObjectiveRow(_distillation, lambda _: "training.distillation.objective:open_distillation"),
}
"""A new stage that the loop trains needs its objective, a row here, and a command with its recipe section."""
