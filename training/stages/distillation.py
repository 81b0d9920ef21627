"""Inputs and stage key of distillation. Must not import torch: `status` calls this."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, require_manifest
from pipelines.contract.recipe import Recipe, RunConfig
from pipelines.contract.workspace import (
    DISTILLATION,
    ENCODER_DIRECTORY,
    EXAMPLES,
    PRETRAINING,
    VOCABULARY,
    VOCABULARY_NAME,
    directory_label,
    length_directory,
)
from pipelines.results.verification import Verification, require_stage, verification_before_reading
from pipelines.staging.staged import StagedDirectory, staged
from training.settings.distillation import DistillationConfig
from training.stages.checkpoint_source import checkpoint_of
from training.stages.encoders import encoder_directory, source_digest
from training.stages.pretraining import shard_metadata, staged_examples
from training.stages.sections import DistillationSections

TEACHER = "teacher"

# Increment whenever the same settings and inputs would produce a different model.
DISTILLATION_VERSION = 1


@dataclass(frozen=True)
class DistillationInputs:
    """Settings and manifests of a distillation run."""

    recipe: Recipe
    workspace: str
    config: DistillationConfig
    examples: Manifest
    teacher_digest: str

    @property
    def directory(self) -> str:
        return storage.join(self.workspace, DISTILLATION)

    @cached_property
    def teacher_directory(self) -> str:
        """The teacher's Hugging Face directory; a teacher that is a checkpoint is exported when this is first read."""
        if self.config.teacher is not None:
            return encoder_directory(self.config.teacher)
        stage = storage.join(self.workspace, PRETRAINING)
        if storage.is_local(stage):
            return storage.join(stage, ENCODER_DIRECTORY)
        manifest = require_manifest(stage, PRETRAINING, f"clozeworks pretrain {self.recipe.path}")
        return storage.join(staged(stage, manifest, self.recipe.section("run", RunConfig)).all(), ENCODER_DIRECTORY)

    @cached_property
    def example_copies(self) -> StagedDirectory | None:
        """Local copies of the examples of a remote workspace, made when they are read."""
        return staged_examples(self.recipe, self.examples_directory, self.examples)

    @property
    def tokenizer_directory(self) -> str:
        """Source of the student's tokenizer."""
        return self.teacher_directory

    @property
    def examples_directory(self) -> str:
        return storage.join(self.workspace, EXAMPLES)

    @property
    def key(self) -> StageKey:
        settings = self.config.identity()
        # A path, not a setting: the teacher's weights enter the key by their digest.
        del settings["teacher"]
        inputs = {EXAMPLES: self.examples.digest, TEACHER: self.teacher_digest}
        return StageKey(DISTILLATION, DISTILLATION_VERSION, settings, inputs)


def distillation_inputs(sections: DistillationSections) -> DistillationInputs:
    """Check the stages that distillation consumes.

    Raises:
        InputError: a stage or the teacher is missing, or examples and teacher have different vocabularies.
    """
    recipe, workspace, config = sections.recipe, sections.workspace, sections.distillation
    examples = require_manifest(storage.join(workspace, EXAMPLES), EXAMPLES, f"clozeworks examples {recipe.path}")
    if config.teacher is None:
        stage = storage.join(workspace, PRETRAINING)
        digest = require_manifest(stage, PRETRAINING, f"clozeworks pretrain {recipe.path}").digest
    else:
        digest = source_digest(config.teacher)
    inputs = DistillationInputs(recipe, workspace, config, examples, digest)
    _require_examples(inputs)
    return inputs


def shard_verification(inputs: DistillationInputs) -> Verification:
    """The verification of the shards that a run reads."""
    directory = length_directory(inputs.config.max_seq_length)
    return verification_before_reading(
        inputs.workspace, EXAMPLES, inputs.examples, lambda file: file.name.split("/")[0] == directory
    )


def verify_teacher(inputs: DistillationInputs) -> None:
    """Verify the files of a teacher of this workspace against its manifest.

    Raises:
        InputError: a file is missing or damaged.
    """
    # A remote teacher is verified while it is copied.
    if inputs.config.teacher is None and storage.is_local(inputs.workspace):
        require_stage(inputs.workspace, PRETRAINING, f"clozeworks pretrain {inputs.recipe.path}")


def _require_examples(inputs: DistillationInputs) -> None:
    length = inputs.config.max_seq_length
    files = inputs.examples.files_of("train", length_directory(length))
    if not sum(file.rows for file in files):
        made = sorted({directory_label(file.name.rpartition("/")[0]) for file in inputs.examples.files})
        raise InputError(
            f"{inputs.recipe.path}: distillation.max_seq_length = {length}, but {inputs.examples_directory} has "
            f"examples of lengths {', '.join(made)} only; use one of these"
        )
    uri = storage.join(inputs.examples_directory, files[0].name)
    found = shard_metadata(uri).get("clozeworks.vocabulary_sha256")
    checkpoint = checkpoint_of(inputs.config.teacher or "")
    # Not the export of a checkpoint, nor a copy of the teacher: `status` calls this.
    if inputs.config.teacher is None:
        directory = storage.join(inputs.workspace, PRETRAINING, ENCODER_DIRECTORY)
    else:
        directory = storage.join(checkpoint.workspace, VOCABULARY) if checkpoint else inputs.teacher_directory
    vocabulary = storage.join(directory, VOCABULARY_NAME)
    if storage.file_size_bytes(vocabulary) is None or storage.sha256_of(vocabulary) != found:
        raise InputError(
            f"{vocabulary}: missing, or different from the vocabulary of {uri} (sha256 {str(found)[:12]}); the teacher "
            "reads the same examples, so build them with its vocabulary"
        )
