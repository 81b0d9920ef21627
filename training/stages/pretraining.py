"""What decides the output of each training stage, and whether its inputs fit together; no torch, so asking is quick."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, digest_of, read_manifest, require_manifest
from pipelines.contract.recipe import Recipe
from pipelines.contract.workspace import (
    DOCUMENTS,
    ENCODER_DIRECTORY,
    EXAMPLES,
    FINETUNING,
    PRETRAINED,
    PRETRAINING,
    RANDOM,
    VOCABULARY,
    length_directory,
    workspace_of,
)
from pipelines.results.verification import verify_stage
from training.settings.finetuning import BEGIN_FROM_MNLI, MNLI, SQUAD, TAGGING, WORD_ORDER, FinetuningConfig
from training.settings.glue import prediction_files, task_files
from training.settings.pretraining import ModelConfig, OptimizerConfig, PretrainingConfig, require_lengths_fit
from training.settings.squad import data_files as squad_files
from training.settings.tagging import data_files as tagging_files

# To be raised whenever the same settings and inputs would give another model than before.
PRETRAINING_VERSION = 2
FINETUNING_VERSION = 2


@dataclass(frozen=True)
class PretrainingInputs:
    """Settings and manifests of a pre-training run that belong together."""

    recipe: Recipe
    workspace: str
    model: ModelConfig
    pretraining: PretrainingConfig
    vocabulary: Manifest
    examples: Manifest

    @property
    def directory(self) -> str:
        return storage.join(self.workspace, PRETRAINING)

    @property
    def vocabulary_directory(self) -> str:
        return storage.join(self.workspace, VOCABULARY)

    @property
    def examples_directory(self) -> str:
        return storage.join(self.workspace, EXAMPLES)

    @property
    def next_sentence(self) -> bool:
        """Do the examples carry next-sentence labels? Their shards say so; there is no second setting to contradict."""
        length = self.pretraining.phases[0].max_seq_length
        file = self.examples.files_of("train", length_directory(length))[0]
        metadata = shard_metadata(storage.join(self.examples_directory, file.name))
        return metadata.get("clozeworks.next_sentence", "true") == "true"

    @property
    def key(self) -> StageKey:
        return StageKey(
            PRETRAINING,
            PRETRAINING_VERSION,
            {"model": self.model.identity(), "pretraining": self.pretraining.identity()},
            {EXAMPLES: self.examples.digest, VOCABULARY: self.vocabulary.digest},
        )


def pretraining_inputs(recipe: Recipe) -> PretrainingInputs:
    """Check the sections and the stages that pre-training consumes.

    Raises:
        InputError: a setting is wrong, a stage is missing, or the examples were made with another vocabulary.
    """
    model = recipe.section("model", ModelConfig)
    pretraining = recipe.section("pretraining", PretrainingConfig)
    require_lengths_fit(model, pretraining, recipe.path)
    workspace = workspace_of(recipe)
    vocabulary = require_manifest(
        storage.join(workspace, VOCABULARY), VOCABULARY, f"python -m pipelines.train_vocabulary {recipe.path}"
    )
    examples = require_manifest(
        storage.join(workspace, EXAMPLES), EXAMPLES, f"python -m pipelines.build_examples {recipe.path}"
    )
    inputs = PretrainingInputs(recipe, workspace, model, pretraining, vocabulary, examples)
    _require_same_vocabulary(inputs)
    return inputs


def verify_inputs(inputs: PretrainingInputs) -> None:
    """Compare what a run will read, shards and vocabulary, with the manifests; each content is read once.

    Raises:
        InputError: a file is missing or damaged.
    """
    directories = {length_directory(phase.max_seq_length) for phase in inputs.pretraining.phases}
    verify_stage(inputs.workspace, VOCABULARY, inputs.vocabulary)
    verify_stage(inputs.workspace, EXAMPLES, inputs.examples, lambda file: file.name.split("/")[0] in directories)


def _require_same_vocabulary(inputs: PretrainingInputs) -> None:
    expected = storage.sha256_of(storage.join(inputs.vocabulary_directory, "vocab.txt"))
    for phase in inputs.pretraining.phases:
        files = inputs.examples.files_of("train", length_directory(phase.max_seq_length))
        if not files:
            made = sorted({file.name.split("/")[0].removeprefix("length") for file in inputs.examples.files})
            raise InputError(
                f"{inputs.recipe.path}: pretraining.phases asks for max_seq_length = {phase.max_seq_length}, but "
                f"{inputs.examples_directory} holds lengths {', '.join(made)}; add it to examples.lengths and run "
                "pipelines.build_examples, or change the phase"
            )
        uri = storage.join(inputs.examples_directory, files[0].name)
        found = shard_metadata(uri).get("clozeworks.vocabulary_sha256")
        if found != expected:
            raise InputError(
                f"{uri}: made with another vocabulary (sha256 {str(found)[:12]}) than "
                f"{inputs.vocabulary_directory}/vocab.txt ({expected[:12]}); run pipelines.build_examples again"
            )


def shard_metadata(uri: str) -> dict[str, str]:
    """Schema metadata of an Arrow shard.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with pa.memory_map(storage.local_path(uri)) as source:
            metadata = pa.ipc.open_file(source).schema.metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{uri}: not a readable Arrow file ({error}); rebuild the stage") from error
    return {key.decode(): value.decode() for key, value in metadata.items()}


def finetuning_directory(recipe: Recipe, task: str, start: str) -> str:
    """Directory of one fine-tuning trial; `start` tells which weights it begins from."""
    return storage.join(workspace_of(recipe), FINETUNING, task, start)


def finetuning_key(recipe: Recipe, task: str, start: str, config: FinetuningConfig | None = None) -> StageKey:
    """Key of one fine-tuning trial: the settings that its task depends on, and the digests of what it reads.

    Args:
        recipe: with the sections [model] and [finetuning].
        task: a name that `finetuning.tasks` takes.
        start: RANDOM, or another word for a trial that begins from an encoder.
        config: settings of this trial, instead of the recipe's own section.

    Raises:
        InputError: a section is wrong, or a file of the task is missing.
    """
    config = config or recipe.section("finetuning", FinetuningConfig)
    workspace = workspace_of(recipe)
    settings = {name: config.identity()[name] for name in (*OptimizerConfig.model_fields, "dropout")}
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
        settings["model"] = recipe.section("model", ModelConfig).identity()
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
