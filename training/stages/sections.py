"""The validated recipe sections that each training stage reads; a process parses them once."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.contract.recipe import Recipe, RunConfig
from pipelines.contract.workspace import local_workspace
from training.settings.distillation import DistillationConfig
from training.settings.finetuning import FinetuningConfig
from training.settings.model import ModelConfig
from training.settings.pretraining import PretrainingConfig


@dataclass(frozen=True)
class PretrainingSections:
    """The sections read by pre-training; `workspace` is a local directory."""

    recipe: Recipe
    workspace: str
    model: ModelConfig
    pretraining: PretrainingConfig

    @classmethod
    def of(cls, recipe: Recipe) -> PretrainingSections:
        """Parse them.

        Raises:
            InputError: a setting is wrong, or the workspace is not on a local disk.
        """
        model = recipe.section("model", ModelConfig)
        pretraining = recipe.section("pretraining", PretrainingConfig)
        return cls(recipe, _workspace_of(recipe), model, pretraining)


@dataclass(frozen=True)
class DistillationSections:
    """The sections read by distillation; `workspace` is a local directory."""

    recipe: Recipe
    workspace: str
    distillation: DistillationConfig

    @classmethod
    def of(cls, recipe: Recipe) -> DistillationSections:
        """Parse them.

        Raises:
            InputError: a setting is wrong, or the workspace is not on a local disk.
        """
        distillation = recipe.section("distillation", DistillationConfig)
        return cls(recipe, _workspace_of(recipe), distillation)


@dataclass(frozen=True)
class FinetuningSections:
    """The sections read by fine-tuning and sweeps; `workspace` is a local directory.

    model: the architecture of trials that are initialized from random weights.
    """

    recipe: Recipe
    workspace: str
    finetuning: FinetuningConfig
    model: ModelConfig

    @classmethod
    def of(cls, recipe: Recipe) -> FinetuningSections:
        """Parse them.

        Raises:
            InputError: a setting is wrong, or the workspace is not on a local disk.
        """
        finetuning = recipe.section("finetuning", FinetuningConfig)
        model = recipe.section("model", ModelConfig)
        return cls(recipe, _workspace_of(recipe), finetuning, model)


def _workspace_of(recipe: Recipe) -> str:
    return local_workspace(recipe.section("run", RunConfig), recipe.path)
