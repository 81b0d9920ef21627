"""Plans the trials of a fine-tuning sweep; without torch.

A trial of a sweep is an ordinary one with its own settings, in <workspace>/finetuning/<task>/sweep/<name>. Its manifest
marks it complete, so a sweep that is run again after a kill repeats nothing.
"""

from __future__ import annotations

import dataclasses

from pipelines.contract.manifest import require_manifest
from pipelines.contract.workspace import FINETUNING, PRETRAINED
from training.settings.glue import MNLI
from training.stages.finetuning import finetuning_directory, sweep_trials
from training.stages.sections import FinetuningSections
from training.trials.trial import Trial
from training.trials.trial_plan import trial_of


def plan(sections: FinetuningSections, task: str) -> list[Trial]:
    """All trials of a task: each point of the grid with the first seed, then with the next.

    Args:
        sections: of the run's recipe.
        task: a valid name of `finetuning.tasks`.

    Raises:
        InputError: a file of the task is missing or has a bad row, or the MNLI model to start from is missing.
    """
    config, workspace = sections.finetuning, sections.workspace
    if config.begins_from_mnli(task):
        directory = finetuning_directory(workspace, MNLI, PRETRAINED)
        require_manifest(directory, FINETUNING, f"clozeworks finetune {sections.recipe.path} --tasks {MNLI}")
    pattern = trial_of(sections, task, PRETRAINED)
    return [
        dataclasses.replace(pattern, directory=each.directory, config=each.config, key=each.key)
        for each in sweep_trials(sections, task, pattern.key)
    ]
