"""What decides the output of a fine-tuning trial."""

from __future__ import annotations

from pipelines.contract import storage
from pipelines.contract.manifest import StageKey, digest_of, read_manifest
from pipelines.contract.workspace import (
    DOCUMENTS,
    ENCODER_DIRECTORY,
    FINETUNING,
    PRETRAINED,
    PRETRAINING,
    RANDOM,
    VOCABULARY,
)
from training.settings.finetuning import FinetuningConfig
from training.settings.glue import BEGIN_FROM_MNLI, MNLI, SQUAD, TAGGING, WORD_ORDER, prediction_files, task_files
from training.settings.optimization import OptimizerConfig
from training.settings.squad import data_files as squad_files
from training.settings.tagging import data_files as tagging_files
from training.stages.sections import FinetuningSections

FINETUNING_VERSION = 2


def finetuning_directory(workspace: str, task: str, start: str) -> str:
    """Directory of one fine-tuning trial; `start` names the weights that it is initialized from."""
    return storage.join(workspace, FINETUNING, task, start)


def finetuning_key(sections: FinetuningSections, task: str, start: str) -> StageKey:
    """Key of one fine-tuning trial: the settings that its task depends on, and the digests of what it reads.

    Args:
        sections: of the recipe, or with the settings of this trial in place of the recipe's.
        task: a name that `finetuning.tasks` takes.
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
    inputs: dict[str, str] = {}
    if task == WORD_ORDER:
        settings["word_order"] = config.word_order.identity()
        inputs[DOCUMENTS] = _digest(workspace, DOCUMENTS)
    else:
        inputs["data"] = digest_of({path: storage.sha256_of(path) for path in _data_files(task, config)})
    if start == RANDOM:
        inputs[VOCABULARY] = _digest(workspace, VOCABULARY)
        settings["model"] = sections.model.identity()
    elif config.mnli_first and task in BEGIN_FROM_MNLI:
        inputs[MNLI] = _digest(workspace, storage.join(FINETUNING, MNLI, PRETRAINED))
    elif config.encoder is not None:
        inputs[ENCODER_DIRECTORY] = _encoder_digest(config.encoder)
    else:
        inputs[VOCABULARY] = _digest(workspace, VOCABULARY)
        inputs[PRETRAINING] = _digest(workspace, PRETRAINING)
    return StageKey(FINETUNING, FINETUNING_VERSION, {"task": task, "start": start, **settings}, inputs)


# What names places, or belongs to other tasks; a trial's data and encoder enter its key by their digests.
_NOT_OF_A_TRIAL = (
    "tasks", "encoder", "glue_dir", "compare_with_random", "mnli_first", "word_order", "squad", "tagging", "sweep",
    "train_file", "dev_file", "test_file",
)  # fmt: skip


def require_task_data(config: FinetuningConfig) -> None:
    """Look for the files of all tasks; to be called before a long training, not after it.

    Raises:
        InputError: one is missing.
    """
    for task in config.tasks:
        if task != WORD_ORDER:  # made from documents
            _data_files(task, config)


def _data_files(task: str, config: FinetuningConfig) -> list[str]:
    if task == SQUAD:
        return squad_files(config.squad)
    if task == TAGGING:
        return tagging_files(config.tagging)
    assert config.glue_dir is not None
    return task_files(task, config.glue_dir) + prediction_files(task, config.glue_dir)


def _encoder_digest(source: str) -> str:
    """Hash of what a trial begins from; a registered model is fetched for it, since an alias may have moved."""
    from training.stages.encoders import encoder_digest, encoder_directory  # they know this module's names

    return encoder_digest(encoder_directory(source))


def _digest(workspace: str, stage: str) -> str:
    manifest = read_manifest(storage.join(workspace, stage))
    return manifest.digest if manifest else ""
