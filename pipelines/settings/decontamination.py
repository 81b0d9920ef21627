"""Recipe section `[documents.decontamination]`, and the files of the recipe's tasks that it may take."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import model_validator

from pipelines.contract.bounds import Bounded, UserPath
from pipelines.contract.recipe import Section

if TYPE_CHECKING:
    from pipelines.contract.recipe import Recipe

_TASK_FILES = "training.stages.evaluation_files:evaluation_files"
"""A function of a recipe, imported only if it is needed: this package does not depend on training."""

_SHINGLES = "fewer words are shared by chance, and no evaluation text has more"


class DecontaminationConfig(Section):
    """`[documents.decontamination]`: drop documents that share word n-grams with evaluation data."""

    files: tuple[UserPath, ...] = ()
    """Evaluation data by path, glob or directory: .json, .jsonl, .csv, .parquet, .arrow, and lines of text or columns
    between tabs under any other name. All their texts count."""
    tasks: bool = False
    """Add the development and test files of `finetuning.tasks`."""
    words_per_gram: Annotated[int, Bounded(4, 100, _SHINGLES)] = 13
    """Brown et al., 2020, appendix C; a text of fewer words is not looked for."""

    @model_validator(mode="after")
    def _something_is_looked_for(self) -> DecontaminationConfig:
        if not self.files and not self.tasks:
            raise ValueError("set files, or tasks = true for the files of finetuning.tasks")
        return self


def with_task_files(table: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The table [documents] with the files of the recipe's tasks among those of decontamination, if it has them added.

    Raises:
        InputError: the recipe names no task that has such files.
    """
    section = table.get("decontamination")
    if not isinstance(section, dict) or section.get("tasks") is not True:
        return table
    module, _, function = _TASK_FILES.partition(":")
    task_files: list[str] = getattr(import_module(module), function)(recipe)
    given = section.get("files", ())
    if not isinstance(given, (list, tuple)):
        return table
    return {**table, "decontamination": {**section, "files": [*dict.fromkeys([*given, *task_files])]}}
