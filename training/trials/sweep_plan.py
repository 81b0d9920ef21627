"""Which trials a sweep of fine-tuning has.

A trial of a sweep is an ordinary one with settings of its own, in <workspace>/finetuning/<task>/sweep/<name>. Its
manifest says that it is complete, so a sweep that is run again after a kill repeats nothing. Without torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pipelines.contract import storage
from pipelines.contract.manifest import StageKey, read_manifest, require_manifest, write_manifest
from pipelines.contract.recipe import Recipe
from pipelines.contract.workspace import FINETUNING, MODEL_DIRECTORY, PRETRAINED, workspace_of
from training.settings.finetuning import FinetuningConfig
from training.settings.glue import MNLI
from training.settings.sweep import Cell
from training.stages.finetuning import finetuning_directory, finetuning_key

SWEEP_DIRECTORY = "sweep"

_MODEL_PREFIX = f"{MODEL_DIRECTORY}/"


@dataclass(frozen=True)
class SweepTrial:
    """One point of a task's grid with one seed."""

    task: str
    cell: Cell
    seed: int
    directory: str
    key: StageKey

    @property
    def name(self) -> str:
        return os.path.basename(self.directory)

    @property
    def label(self) -> str:
        """What it is called in lines and as an MLflow run."""
        return f"{self.task}/{self.name}"

    def difference(self) -> str | None:
        """Why it has to be trained, in words; None where it is complete."""
        return self.key.difference(self.directory)

    def statistics(self) -> dict[str, Any]:
        """Its manifest's; it is complete."""
        manifest = read_manifest(self.directory)
        assert manifest is not None, self.directory
        return manifest.statistics

    def has_model(self) -> bool:
        """Does its manifest name weights?"""
        manifest = read_manifest(self.directory)
        return manifest is not None and any(file.name.startswith(_MODEL_PREFIX) for file in manifest.files)

    def drop_model(self) -> None:
        """Delete its weights, complete as it is; the manifest no longer names them, scores and predictions stay."""
        manifest = read_manifest(self.directory)
        assert manifest is not None, self.directory
        kept = tuple(file for file in manifest.files if not file.name.startswith(_MODEL_PREFIX))
        if len(kept) < len(manifest.files):
            # First the manifest: whatever happens in between, it names nothing that is not there.
            write_manifest(self.directory, manifest.model_copy(update={"files": kept}))
        storage.remove_directory(storage.join(self.directory, MODEL_DIRECTORY))

    def config(self, config: FinetuningConfig) -> FinetuningConfig:
        """The section [finetuning] with this trial's settings."""
        return config.with_fitting(self.task, {**self.cell._asdict(), "seed": self.seed})


def plan(recipe: Recipe, config: FinetuningConfig, task: str, folder: str | None) -> list[SweepTrial]:
    """All trials of a task: each point of the grid with the first seed, then with the next.

    Args:
        recipe: of the run.
        config: its section [finetuning].
        task: a name that `finetuning.tasks` takes.
        folder: that the task's own is in; None where its files are named one by one.

    Raises:
        InputError: a file of the task is missing or has a bad row, or the MNLI model that it begins from is missing.
    """
    if config.begins_from_mnli(task):
        directory = finetuning_directory(recipe, MNLI, PRETRAINED)
        require_manifest(directory, FINETUNING, f"clozeworks finetune {recipe.path} --tasks {MNLI}")
    own = config.fitting(task)
    # Data and encoder are hashed once, not for each trial.
    key = finetuning_key(recipe, task, PRETRAINED, config)
    trials = []
    num_seeds = config.sweep.num_seeds(config.family(task).is_small(config, task, folder))
    for seed in range(own.seed, own.seed + num_seeds):
        for cell in config.sweep.cells(own):
            directory = storage.join(workspace_of(recipe), FINETUNING, task, SWEEP_DIRECTORY, f"{cell.name}-seed{seed}")
            settings = {**key.config, **cell._asdict(), "seed": seed}
            trials.append(
                SweepTrial(task, cell, seed, directory, StageKey(key.stage, key.stage_version, settings, key.inputs))
            )
    return trials
