"""Exports a checkpoint as a Hugging Face directory, in one process, also while its run continues."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, verify_file
from pipelines.contract.recipe import RunConfig
from pipelines.contract.workspace import ENCODER_DIRECTORY, VOCABULARY
from pipelines.results.locks import workspace_lock
from pipelines.results.verification import require_stage
from pipelines.staging.staged import staged
from training.resuming.progress import Progress
from training.settings.model import ModelConfig
from training.stages.checkpoint_source import CheckpointSource, require_unchanged

_WAIT_SECONDS = 3600.0
_EMBEDDINGS = ".embeddings.word_embeddings.weight"
_NEXT_SENTENCE_HEAD = "cls.seq_relationship.weight"


def export_checkpoint(
    checkpoint: CheckpointSource, output: str, say: Callable[[str], None], run: RunConfig | None = None
) -> None:
    """Write a checkpoint's fp32 weights, its configuration, tokenizer and README.md; atomically.

    Args:
        checkpoint: of any ZeRO stage, written by any number of ranks.
        output: a local directory that is absent or empty.
        say: prints a line.
        run: the section [run], which names the place for copies of a remote checkpoint; None is its default.

    Raises:
        InputError: the output exists, the checkpoint is damaged or was deleted meanwhile, or the workspace's vocabulary
            is not that of the run.
    """
    _require_empty(output)
    vocabulary = _require_own_vocabulary(checkpoint)
    say(f"reading {checkpoint.directory}")
    parent = os.path.dirname(os.path.abspath(output))
    storage.make_directory(parent)
    with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=parent) as scratch:
        written = storage.join(scratch, ENCODER_DIRECTORY)
        num_parameters = _write(checkpoint, vocabulary, written, run or RunConfig())
        for name in os.listdir(written):
            storage.flush_to_disk(storage.join(written, name))
        storage.flush_to_disk(written)
        # Replaces an empty directory, but not one that was filled meanwhile.
        os.rename(written, output)
    storage.flush_to_disk(parent)
    say(f"{checkpoint.name}: {num_parameters:,} parameters in {output}")


def cached_export(checkpoint: CheckpointSource, cache: str, say: Callable[[str], None]) -> str:
    """The export of a checkpoint in a cache of models, under the checkpoint's digest; written if it is not there.

    Raises:
        InputError: as `export_checkpoint`.
    """
    name = checkpoint.digest[:32]
    directory = storage.join(cache, name)
    if not os.path.isdir(directory):
        # The ranks of one command ask at the same time.
        with workspace_lock(cache, name, _WAIT_SECONDS):
            if not os.path.isdir(directory):
                export_checkpoint(checkpoint, directory, say)
    return directory


def _require_empty(output: str) -> None:
    if os.path.lexists(output) and not (os.path.isdir(output) and not os.listdir(output)):
        raise InputError(f"{output}: exists and is not an empty directory; choose another name, or move it away")


def _require_own_vocabulary(checkpoint: CheckpointSource) -> str:
    """The directory of the vocabulary that the run was trained with, verified."""
    found = require_stage(checkpoint.workspace, VOCABULARY, "clozeworks vocabulary RECIPE.toml").digest
    expected = checkpoint.manifest.inputs.get(VOCABULARY)
    directory = storage.join(checkpoint.workspace, VOCABULARY)
    if found != expected:
        raise InputError(
            f"{directory}: digest {found[:12]}, but {checkpoint.directory} was trained with the vocabulary of digest "
            f"{str(expected)[:12]}; restore that vocabulary, or export a checkpoint of the present one"
        )
    return directory


def _write(checkpoint: CheckpointSource, vocabulary: str, directory: str, run: RunConfig) -> int:
    """Write the export's files; returns the number of parameters."""
    # torch takes seconds to load: only after these checks.
    import torch

    from training.bert.heads import build_pretraining_model
    from training.bert.huggingface import huggingface_config, write_model
    from training.engine.checkpoint_weights import full_precision_weights, stored_shapes
    from training.resuming.result_checks import require_finite

    try:
        files = _local_files(checkpoint, run)
        config = ModelConfig.model_validate(checkpoint.manifest.config["model"])
        shapes = stored_shapes(files)
        embeddings = next(name for name in shapes if name.endswith(_EMBEDDINGS))
        vocab_size, next_sentence = shapes[embeddings][0], _NEXT_SENTENCE_HEAD in shapes
        with torch.device("meta"):
            model = build_pretraining_model(config, vocab_size, next_sentence)
        weights = full_precision_weights(files, model)
    except (OSError, LookupError, ValueError) as error:
        require_unchanged(checkpoint)
        if isinstance(error, (OSError, InputError)):
            raise
        raise InputError(f"{checkpoint.directory}: cannot be read ({error}); choose another checkpoint") from error
    # All parts are of one checkpoint: a run deletes and replaces complete directories only.
    require_unchanged(checkpoint)
    require_finite(weights, {}, checkpoint.directory)
    num_parameters = sum(tensor.numel() for tensor in weights.values())
    needed_bytes = num_parameters * weights[next(iter(weights))].element_size()
    storage.require_free_space(directory, needed_bytes, "the exported weights")
    origin = (("run", _run_in_words(checkpoint)), ("checkpoint", _progress_in_words(checkpoint)))
    write_model(directory, weights, huggingface_config(config, vocab_size, model.architecture), vocabulary, origin)
    return num_parameters


def _local_files(checkpoint: CheckpointSource, run: RunConfig) -> str:
    """The directory of a checkpoint's verified files; a remote one is copied."""
    if not storage.is_local(checkpoint.directory):
        return staged(checkpoint.directory, checkpoint.manifest, run).all()
    for file in checkpoint.manifest.files:
        verify_file(checkpoint.directory, file)
    return checkpoint.directory


def _run_in_words(checkpoint: CheckpointSource) -> str:
    manifest = checkpoint.manifest
    key = StageKey(manifest.stage, manifest.stage_version, manifest.config, manifest.inputs)
    return f"pre-training in workspace {os.path.basename(os.path.abspath(checkpoint.workspace))}, key {key.digest[:12]}"


def _progress_in_words(checkpoint: CheckpointSource) -> str:
    progress = Progress.from_json(checkpoint.manifest.statistics)
    return f"step {progress.step:,}, {progress.tokens:,} tokens, {progress.sequences:,} sequences"
