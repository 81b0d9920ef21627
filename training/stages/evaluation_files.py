"""The development and test files of a recipe's tasks, for those who must not train on their texts."""

from __future__ import annotations

from pipelines.contract.errors import InputError
from pipelines.contract.recipe import Recipe
from training.settings.finetuning import FinetuningConfig


def evaluation_files(recipe: Recipe) -> list[str]:
    """Paths of the files, sorted; a task that is generated from held-out documents has none.

    Raises:
        InputError: no task of the recipe has any.
    """
    config = recipe.section("finetuning", FinetuningConfig)
    found = {path for task in config.tasks for path in config.family(task).evaluation_files(config, task)}
    if not found:
        raise InputError(
            f"{recipe.path}: documents.decontamination.tasks = true, but finetuning.tasks = {list(config.tasks)} names "
            "no task with files; name one, or list the files in documents.decontamination.files"
        )
    return sorted(found)
