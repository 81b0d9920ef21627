"""The validated recipe sections that each training stage reads; a process parses them once."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.contract.recipe import Recipe, RunConfig
from pipelines.contract.workspace import workspace_of
from training.settings.distillation import DistillationConfig
from training.settings.finetuning import FinetuningConfig
from training.settings.model import ModelConfig
from training.settings.pretraining import PretrainingConfig


@dataclass(frozen=True)
class PretrainingSections:
    """The sections read by pre-training; `workspace` is a directory or a URI."""

    recipe: Recipe
    workspace: str
    model: ModelConfig
    pretraining: PretrainingConfig

    @classmethod
    def of(cls, recipe: Recipe) -> PretrainingSections:
        """Parse them.

        Raises:
            InputError: a setting is wrong.
        """
        model = recipe.section("model", ModelConfig)
        pretraining = recipe.section("pretraining", PretrainingConfig)
        return cls(recipe, _workspace_of(recipe), model, pretraining)


@dataclass(frozen=True)
class DistillationSections:
    """The sections read by distillation; `workspace` is a directory or a URI."""

    recipe: Recipe
    workspace: str
    distillation: DistillationConfig

    @classmethod
    def of(cls, recipe: Recipe) -> DistillationSections:
        """Parse them.

        Raises:
            InputError: a setting is wrong.
        """
        distillation = recipe.section("distillation", DistillationConfig)
        return cls(recipe, _workspace_of(recipe), distillation)


@dataclass(frozen=True)
class FinetuningSections:
    """The sections read by fine-tuning and sweeps; `workspace` is a directory or a URI.

    model: `[model]` of the recipe, for trials that are initialized from random weights. initial_encoder: of
    pre-training, which decides their architecture where it is set.
    """

    recipe: Recipe
    workspace: str
    finetuning: FinetuningConfig
    model: ModelConfig
    initial_encoder: str | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> FinetuningSections:
        """Parse them.

        Raises:
            InputError: a setting is wrong.
        """
        finetuning = recipe.section("finetuning", FinetuningConfig)
        model = recipe.section("model", ModelConfig)
        initial_encoder = None
        if finetuning.compare_with_random:
            initial_encoder = recipe.section("pretraining", PretrainingConfig).initial_encoder
        return cls(recipe, _workspace_of(recipe), finetuning, model, initial_encoder)


def _workspace_of(recipe: Recipe) -> str:
    return workspace_of(recipe.section("run", RunConfig))
