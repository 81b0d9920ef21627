"""Directories and stage keys of fine-tuning trials, those of sweeps among them."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.contract import storage
from pipelines.contract.manifest import StageKey, digest_of, read_manifest
from pipelines.contract.workspace import (
    DATA_DIRECTORY,
    DOCUMENTS,
    ENCODER_DIRECTORY,
    FINETUNING,
    PRETRAINED,
    PRETRAINING,
    RANDOM,
    VOCABULARY,
)
from training.settings.finetuning import FinetuningConfig
from training.settings.glue import MNLI
from training.settings.model import ModelConfig
from training.settings.optimization import FittingConfig, OptimizerConfig
from training.settings.tasks import FAMILIES
from training.stages.encoders import source_digest
from training.stages.initial_encoder import model_of
from training.stages.sections import FinetuningSections

FINETUNING_VERSION = 2
SWEEP = "sweep"
"""Name of a sweep's directory in that of its task, and of the stage."""


def finetuning_directory(workspace: str, task: str, start: str) -> str:
    """Directory of one fine-tuning trial; `start` names its initial weights."""
    return storage.join(workspace, FINETUNING, task, start)


def finetuning_key(sections: FinetuningSections, task: str, start: str) -> StageKey:
    """Key of one fine-tuning trial: the settings that its task depends on, and the digests of what it reads.

    Args:
        sections: of the recipe, with this trial's settings in place of the recipe's.
        task: a valid name of `finetuning.tasks`.
        start: RANDOM, or another word for a trial that is initialized from an encoder.

    Raises:
        InputError: a file of the task is missing.
    """
    config, workspace = sections.finetuning, sections.workspace
    shared = config.identity()
    settings = {name: shared[name] for name in (*OptimizerConfig.model_fields, "dropout")}
    settings |= config.fitting(task).identity()
    for name in _NOT_OF_A_TRIAL:
        settings.pop(name, None)
    family, inputs = config.family(task), dict[str, str]()
    own = family.own_settings(config, task)
    if own is not None and not isinstance(own, FittingConfig):
        settings[family.section] = own.identity()
    if family.preparer:
        inputs[DOCUMENTS] = _digest(workspace, DOCUMENTS)
    else:
        files = family.data_files(config, task)
        inputs["data"] = digest_of({name: storage.sha256_of(path) for name, path in files.items()})
    if start == RANDOM:
        inputs[VOCABULARY] = _digest(workspace, VOCABULARY)
        settings["model"] = random_model(sections).identity()
    elif config.begins_from_mnli(task):
        inputs[MNLI] = _digest(workspace, storage.join(FINETUNING, MNLI, PRETRAINED))
    elif config.encoder is not None:
        inputs[ENCODER_DIRECTORY] = source_digest(config.encoder)
    else:
        inputs[VOCABULARY] = _digest(workspace, VOCABULARY)
        inputs[PRETRAINING] = _digest(workspace, PRETRAINING)
    return StageKey(FINETUNING, FINETUNING_VERSION, {"task": task, "start": start, **settings}, inputs)


@dataclass(frozen=True)
class SweepTrial:
    """One trial of a task's sweep. config: the section [finetuning] with its settings; key: of its directory."""

    name: str
    directory: str
    config: FinetuningConfig
    key: StageKey


def sweep_directory(workspace: str, task: str) -> str:
    """Directory of a task's sweep, with a directory for each trial."""
    return storage.join(workspace, FINETUNING, task, SWEEP)


def sweep_trials(sections: FinetuningSections, task: str, key: StageKey) -> list[SweepTrial]:
    """All trials of a task's sweep: each point of the grid with the first seed, then with the next.

    Args:
        sections: of the run's recipe.
        task: a valid name of `finetuning.tasks`.
        key: of the task's ordinary trial, whose data and encoder are hashed once and not for each trial.

    Raises:
        InputError: a file of the task is missing or has a bad row.
    """
    config, workspace = sections.finetuning, sections.workspace
    own, root = config.fitting(task), sweep_directory(workspace, task)
    num_seeds = config.sweep.num_seeds(config.family(task).is_small(config, task, data_folder(workspace, config, task)))
    trials = []
    for seed in range(own.seed, own.seed + num_seeds):
        for cell in config.sweep.cells(own):
            name, settings = f"{cell.name}-seed{seed}", {**cell._asdict(), "seed": seed}
            own_key = StageKey(key.stage, key.stage_version, {**key.config, **settings}, key.inputs)
            own_config = config.with_fitting(task, settings)
            trials.append(SweepTrial(name, storage.join(root, name), own_config, own_key))
    return trials


# Paths, and settings of other tasks; a trial's data and encoder enter its key by their digests.
_NOT_OF_A_TRIAL = (
    "tasks", "encoder", "glue_dir", "compare_with_random", "mnli_first", "sweep", "train_file", "dev_file", "test_file",
    *(family.section for family in FAMILIES),
)  # fmt: skip


def random_model(sections: FinetuningSections) -> ModelConfig:
    """Architecture of the trials from random weights: that of pre-training.

    Raises:
        InputError: the initial encoder of pre-training, which decides it, is missing.
    """
    return model_of(sections.model, sections.initial_encoder, sections.recipe.path)


def data_folder(workspace: str, config: FinetuningConfig, task: str) -> str | None:
    """The parent of a task's folder; None if its files are listed individually."""
    if config.family(task).preparer:
        return storage.join(workspace, FINETUNING, DATA_DIRECTORY)
    return config.glue_dir


def require_task_data(config: FinetuningConfig) -> None:
    """Check that the files of all tasks exist, and the rows of tables; to be called before a long training.

    Raises:
        InputError: one is missing, or a row of a table is bad.
    """
    for task in config.tasks:
        config.family(task).data_files(config, task)
        config.family(task).check(config, task)


def _digest(workspace: str, stage: str) -> str:
    manifest = read_manifest(storage.join(workspace, stage))
    return manifest.digest if manifest else ""
