"""Every name in a workspace: directories of stages and their files."""

from __future__ import annotations

import importlib.metadata

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import Recipe, RunConfig
from pipelines.contract.schemas import LengthBin, Split

MANIFEST_NAME = "manifest.json"


VOCABULARY_NAME = "vocab.txt"


TOKENIZER_NAME = "tokenizer.json"


def length_label(length: int, max_seq_length: int) -> str:
    """A length with so many digits as the maximum has, so that names are in order."""
    return f"{length:0{len(str(max_seq_length))}d}"


def shard_name(split: Split, index: int, count: int) -> str:
    """File name of one shard, such as `train-00003-of-00016.arrow`."""
    return f"{split}-{_number(index, count)}"


def _number(index: int, count: int) -> str:
    return f"{index:05d}-of-{count:05d}.arrow"


def length_directory(max_seq_length: int) -> str:
    """Directory of the examples of one maximum length, below the stage's own."""
    return f"length{max_seq_length}"


def examples_name(max_seq_length: int, length_bin: LengthBin, split: Split, index: int, count: int) -> str:
    """Name of one file of examples, such as `length128/train-00003-of-00016.arrow`."""
    return examples_prefix(max_seq_length, length_bin, split) + _number(index, count)


def examples_prefix(max_seq_length: int, length_bin: LengthBin, split: Split) -> str:
    """How the names of a bin's files begin: `length128/train-`, or `length128/train-bin064-` for one bin of several."""
    is_whole = length_bin == (0, max_seq_length)
    infix = "" if is_whole else f"bin{length_label(length_bin.up_to, max_seq_length)}-"
    return f"{length_directory(max_seq_length)}/{split}-{infix}"


DOCUMENTS, VOCABULARY, EXAMPLES = "documents", "vocabulary", "examples"


CORPUS_INPUT = "corpus"


def stage_directory(recipe: Recipe, stage: str) -> str:
    """The directory of a stage in the recipe's workspace."""
    return storage.join(recipe.section("run", RunConfig).workspace, stage)


PRETRAINING, FINETUNING = "pretraining", "finetuning"


ENCODER_DIRECTORY, MODEL_DIRECTORY = "encoder", "model"


PRETRAINED, RANDOM = "pretrained", "random"
"""Trials of a fine-tuning task, by the weights that they begin from."""


def workspace_of(recipe: Recipe) -> str:
    """The run's directory, which training needs on a local disk.

    Raises:
        InputError: it is not a path, or lies on a remote file system.
    """
    workspace = recipe.section("run", RunConfig).workspace
    if not storage.is_local(workspace):
        raise InputError(
            f"{recipe.path}: run.workspace = {workspace!r}: training memory-maps its examples and needs a local "
            "directory; copy vocabulary/ and examples/ to one and pass --workspace"
        )
    return storage.local_path(workspace)


def code_version() -> str:
    """Version of the installed distribution, for manifests."""
    try:
        return importlib.metadata.version("clozeworks")
    except importlib.metadata.PackageNotFoundError:
        return "source tree"


def vocabulary_size(directory: str) -> int:
    """Number of entries of a vocabulary stage's vocab.txt."""
    return len(storage.read_bytes(storage.join(directory, "vocab.txt")).decode().split("\n")) - 1


DISTILLATION = "distillation"


DATA_DIRECTORY = "data"


METRICS_NAME = "metrics.jsonl"


CHECKPOINTS_DIRECTORY = "checkpoints"
