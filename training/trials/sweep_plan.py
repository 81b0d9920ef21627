"""Plans the trials of a fine-tuning sweep; without torch.

A trial of a sweep is an ordinary one with its own settings, in <workspace>/finetuning/<task>/sweep/<name>. Its manifest
marks it complete, so a sweep that is run again after a kill repeats nothing.
"""

from __future__ import annotations

import dataclasses

from pipelines.contract import storage
from pipelines.contract.manifest import StageKey, require_manifest
from pipelines.contract.workspace import FINETUNING, PRETRAINED
from training.settings.glue import MNLI
from training.stages.finetuning import finetuning_directory
from training.stages.sections import FinetuningSections
from training.trials.trial import Trial
from training.trials.trial_plan import trial_of

SWEEP_DIRECTORY = "sweep"


def plan(sections: FinetuningSections, task: str, folder: str | None) -> list[Trial]:
    """All trials of a task: each point of the grid with the first seed, then with the next.

    Args:
        sections: of the run's recipe.
        task: a valid name of `finetuning.tasks`.
        folder: parent of the task's folder; None if its files are listed individually.

    Raises:
        InputError: a file of the task is missing or has a bad row, or the MNLI model to start from is missing.
    """
    config, workspace = sections.finetuning, sections.workspace
    if config.begins_from_mnli(task):
        directory = finetuning_directory(workspace, MNLI, PRETRAINED)
        require_manifest(directory, FINETUNING, f"clozeworks finetune {sections.recipe.path} --tasks {MNLI}")
    own, root = config.fitting(task), storage.join(workspace, FINETUNING, task, SWEEP_DIRECTORY)
    # Hash data and encoder once, not for each trial.
    pattern = trial_of(sections, task, PRETRAINED)
    trials = []
    num_seeds = config.sweep.num_seeds(config.family(task).is_small(config, task, folder))
    for seed in range(own.seed, own.seed + num_seeds):
        for cell in config.sweep.cells(own):
            settings = {**cell._asdict(), "seed": seed}
            key = pattern.key
            trials.append(
                dataclasses.replace(
                    pattern,
                    directory=storage.join(root, f"{cell.name}-seed{seed}"),
                    config=config.with_fitting(task, settings),
                    key=StageKey(key.stage, key.stage_version, {**key.config, **settings}, key.inputs),
                )
            )
    return trials
