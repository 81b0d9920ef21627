"""What is started on the nodes of a run: a module of `training`, its arguments, and its number of ranks."""

from __future__ import annotations

from dataclasses import dataclass

from flows.parameters.whole_recipe import WholeRecipe
from training.settings.cluster import ClusterConfig


@dataclass(frozen=True)
class Job:
    """`python -m module arguments` as each rank; `ranks`: of one node, 0 means one per GPU or two without a GPU."""

    module: str
    arguments: tuple[str, ...]
    ranks: int
    cluster: ClusterConfig
    one_node: bool = False
    """Use one node of the cluster only."""

    @classmethod
    def of(cls, whole: WholeRecipe, module: str, ranks: int, one_node: bool = False) -> Job:
        """A job that runs a command of a recipe."""
        return cls(module, tuple(recipe_arguments(whole)), ranks, whole.pretraining.cluster, one_node)


def recipe_arguments(whole: WholeRecipe) -> list[str]:
    """The arguments by which a command reads the same recipe."""
    recipe = whole.recipe
    return [recipe.path, *(argument for override in recipe.overrides for argument in ("--set", override))]
