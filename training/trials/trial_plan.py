"""Plans the trials of a recipe, and the inputs of each."""

from __future__ import annotations

from pipelines.contract import storage
from pipelines.contract.manifest import require_manifest
from pipelines.contract.recipe import RunConfig
from pipelines.contract.workspace import (
    DOCUMENTS,
    ENCODER_DIRECTORY,
    MODEL_DIRECTORY,
    PRETRAINED,
    PRETRAINING,
    RANDOM,
    VOCABULARY,
    code_version,
)
from pipelines.results.verification import require_stage, verify_read
from training.settings.finetuning import FinetuningConfig
from training.settings.glue import MNLI
from training.settings.tasks import load
from training.stages.finetuning import data_folder, finetuning_directory, finetuning_key, random_model
from training.stages.sections import FinetuningSections
from training.trials.trial import Trial


def planned_trials(config: FinetuningConfig) -> list[tuple[str, str]]:
    """Task and start of all trials of a recipe, MNLI's first if others start from it."""
    tasks = sorted(config.tasks, key=lambda task: task != MNLI) if config.mnli_first else config.tasks
    starts = (PRETRAINED, RANDOM) if config.compare_with_random else (PRETRAINED,)
    return [(task, start) for task in tasks for start in starts]


def require_inputs(sections: FinetuningSections) -> None:
    """Check that the stages read by fine-tuning are complete and match their manifests.

    Raises:
        InputError: one is missing (the message names its command), or a file is damaged.
    """
    recipe, workspace, config = sections.recipe, sections.workspace, sections.finetuning
    if config.encoder is None or config.compare_with_random:
        require_stage(workspace, VOCABULARY, f"clozeworks vocabulary {recipe.path}")
    if config.encoder is None:
        pretraining = storage.join(workspace, PRETRAINING)
        manifest = require_manifest(pretraining, PRETRAINING, f"clozeworks pretrain {recipe.path}")
        verify_read(workspace, PRETRAINING, manifest, lambda _: True)
    if any(config.family(task).preparer for task in config.tasks):
        require_stage(
            workspace,
            DOCUMENTS,
            f"clozeworks documents {recipe.path}",
            lambda file: file.name.startswith("heldout-"),
        )


def data_directory(sections: FinetuningSections, task: str) -> str | None:
    """The parent of a task's folder; None if its files are listed individually.

    A task that is generated from held-out documents is generated here if it does not exist.
    """
    workspace, config = sections.workspace, sections.finetuning
    family = config.family(task)
    folder = data_folder(workspace, config, task)
    if family.preparer:
        documents = storage.join(workspace, DOCUMENTS)
        manifest = require_manifest(documents, DOCUMENTS, f"clozeworks documents {sections.recipe.path}")
        load(family.preparer)(folder, documents, manifest, family.own_settings(config, task), code_version())
    return folder


def trial_of(sections: FinetuningSections, task: str, start: str) -> Trial:
    """A trial, resolved against the current files: it may start from an earlier trial's result.

    Raises:
        InputError: a file of the task or the recipe's encoder is missing.
    """
    workspace, config = sections.workspace, sections.finetuning
    run = sections.recipe.section("run", RunConfig)
    directory, key = finetuning_directory(workspace, task, start), finetuning_key(sections, task, start)
    if start == RANDOM:
        vocabulary = storage.join(workspace, VOCABULARY)
        return Trial(task, start, directory, config, key, None, vocabulary, random_model(sections), run)
    if config.begins_from_mnli(task):
        source = storage.join(finetuning_directory(workspace, MNLI, PRETRAINED), MODEL_DIRECTORY)
    elif config.encoder is not None:
        from training.stages.encoders import encoder_directory

        source = encoder_directory(config.encoder)
    else:
        source = storage.join(workspace, PRETRAINING, ENCODER_DIRECTORY)
    return Trial(task, start, directory, config, key, source, source, run=run)
