"""Inputs and stage key of pre-training, and checks that they fit. Must not import torch: `status` calls this."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, require_manifest
from pipelines.contract.recipe import Recipe, RunConfig
from pipelines.contract.workspace import (
    EXAMPLES,
    PRETRAINING,
    VOCABULARY,
    VOCABULARY_NAME,
    directory_label,
    vocabulary_size,
)
from pipelines.results.verification import Verification, verification_before_reading
from pipelines.staging.staged import StagedDirectory, staged
from training.settings.model import ModelConfig
from training.settings.pretraining import PretrainingConfig, require_model_fits
from training.stages.initial_encoder import INITIAL_ENCODER, InitialEncoder, continued_model, resolved_encoder
from training.stages.origins import recorded_origin, with_origin
from training.stages.sections import PretrainingSections

# Increment whenever the same settings and inputs would produce a different model.
PRETRAINING_VERSION = 3

NO_PAIRS = (
    "model.attention other than 'bidirectional' has no next-sentence task, but the examples are pairs of segments, "
    "half of them at random; set examples.next_sentence = false"
)


@dataclass(frozen=True)
class PretrainingInputs:
    """Settings and manifests of a pre-training run; `model` is that of the initial encoder, if there is one."""

    recipe: Recipe
    workspace: str
    model: ModelConfig
    pretraining: PretrainingConfig
    vocabulary: Manifest
    examples: Manifest
    initial: InitialEncoder | None = None
    continued_from: str | None = None
    """Digest of the checkpoint of a finished run that the weights start from."""

    @property
    def directory(self) -> str:
        return storage.join(self.workspace, PRETRAINING)

    @property
    def vocabulary_directory(self) -> str:
        return storage.join(self.workspace, VOCABULARY)

    @property
    def vocab_size(self) -> int:
        """Rows of the word embeddings; rows of padding of an initial encoder stay, so that its shapes do."""
        size = vocabulary_size(self.vocabulary_directory)
        return size if self.initial is None else max(size, self.initial.vocab_size)

    @property
    def tokenizer_directory(self) -> str:
        """Source of the encoder's tokenizer."""
        return self.vocabulary_directory

    @property
    def examples_directory(self) -> str:
        return storage.join(self.workspace, EXAMPLES)

    @cached_property
    def example_copies(self) -> StagedDirectory | None:
        """Local copies of the examples of a remote workspace, made when they are read."""
        return staged_examples(self.recipe, self.examples_directory, self.examples)

    @property
    def next_sentence(self) -> bool:
        """Whether the examples have next-sentence labels, read from their shards: there is no setting for it."""
        file = self.examples.files_of("train", self.pretraining.phases[0].examples_directory)[0]
        metadata = shard_metadata(storage.join(self.examples_directory, file.name))
        return metadata.get("clozeworks.next_sentence", "true") == "true"

    @property
    def key(self) -> StageKey:
        key = pretraining_key(self.model, self.pretraining, self.vocabulary, self.examples, self.initial)
        return with_origin(key, self.continued_from)


def pretraining_key(
    model: ModelConfig,
    pretraining: PretrainingConfig,
    vocabulary: Manifest,
    examples: Manifest,
    initial: InitialEncoder | None = None,
) -> StageKey:
    """Key of pre-training: settings and the digests of vocabulary, examples and initial encoder."""
    return StageKey(
        PRETRAINING,
        PRETRAINING_VERSION,
        {"model": model.identity(), "pretraining": pretraining.identity()},
        {EXAMPLES: examples.digest, VOCABULARY: vocabulary.digest}
        | ({INITIAL_ENCODER: initial.digest} if initial else {}),
    )


def pretraining_inputs(sections: PretrainingSections) -> PretrainingInputs:
    """Check the stages that pre-training consumes; a run of these settings that was continued keeps its key.

    Raises:
        InputError: the sections contradict each other or the initial encoder, a stage or that encoder is missing, or
            the examples were built with another vocabulary.
    """
    recipe, workspace, model = sections.recipe, sections.workspace, sections.model
    source = sections.pretraining.initial_encoder
    initial = resolved_encoder(source) if source is not None else None
    if initial is not None:
        model = continued_model(model, initial.model, initial.source, recipe.path)
    require_model_fits(model, sections.pretraining, recipe.path)
    vocabulary = require_manifest(
        storage.join(workspace, VOCABULARY), VOCABULARY, f"clozeworks vocabulary {recipe.path}"
    )
    examples = require_manifest(storage.join(workspace, EXAMPLES), EXAMPLES, f"clozeworks examples {recipe.path}")
    inputs = PretrainingInputs(recipe, workspace, model, sections.pretraining, vocabulary, examples, initial)
    _require_same_vocabulary(inputs)
    if model.predicts_next_tokens and inputs.next_sentence:
        raise InputError(f"{recipe.path}: {NO_PAIRS}")
    return replace(inputs, continued_from=recorded_origin(inputs.key, inputs.directory))


def shard_verification(inputs: PretrainingInputs) -> Verification:
    """The verification of the shards that a run reads."""
    directories = {phase.examples_directory for phase in inputs.pretraining.phases}
    return verification_before_reading(
        inputs.workspace, EXAMPLES, inputs.examples, lambda file: file.name.rpartition("/")[0] in directories
    )


def staged_examples(recipe: Recipe, directory: str, examples: Manifest) -> StagedDirectory | None:
    """Local copies of the examples stage, made when they are read; None if it is local itself."""
    return None if storage.is_local(directory) else staged(directory, examples, recipe.section("run", RunConfig))


def _require_same_vocabulary(inputs: PretrainingInputs) -> None:
    expected = storage.sha256_of(storage.join(inputs.vocabulary_directory, VOCABULARY_NAME))
    for phase in inputs.pretraining.phases:
        files = inputs.examples.files_of("train", phase.examples_directory)
        if not files:
            of_set = "" if phase.examples is None else f" of the set {phase.examples!r}"
            section = "examples.lengths" if phase.examples is None else "examples.sets"
            made = sorted({directory_label(file.name.rpartition("/")[0]) for file in inputs.examples.files})
            raise InputError(
                f"{inputs.recipe.path}: pretraining.phases needs max_seq_length = {phase.max_seq_length}{of_set}, but "
                f"{inputs.examples_directory} has lengths {', '.join(made)}; add it to {section} and run "
                "clozeworks examples again, or change the phase"
            )
        uri = storage.join(inputs.examples_directory, files[0].name)
        found = shard_metadata(uri).get("clozeworks.vocabulary_sha256")
        if found != expected:
            raise InputError(
                f"{uri}: built with another vocabulary (sha256 {str(found)[:12]}) than "
                f"{inputs.vocabulary_directory}/vocab.txt ({expected[:12]}); run clozeworks examples again"
            )


def shard_metadata(uri: str) -> dict[str, str]:
    """Schema metadata of an Arrow shard.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with storage.open_seekable(uri) as source:
            metadata = pa.ipc.open_file(source).schema.metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{uri}: not a readable Arrow file ({error}); rebuild the stage") from error
    return {key.decode(): value.decode() for key, value in metadata.items()}
