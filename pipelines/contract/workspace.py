"""Every name in a workspace: directories of stages and their files.

    documents/       train-00000-of-00008.arrow ... rejected.jsonl.gz
    vocabulary/      vocab.txt, tokenizer.json, tokenizer_config.json
    examples/        length128/train-00000-of-00008.arrow ... NAME/length128/ ... for each set
    pretraining/     encoder/, checkpoints/step-.../, metrics.jsonl
    finetuning/      TASK/pretrained/model/, TASK/random/model/
    distillation/    encoder/, metrics.jsonl

Each complete stage has a `manifest.json`; while it is built, it is in `<stage>.building/` with a mark in `scratch/`.
"""

from __future__ import annotations

import importlib.metadata

from pipelines.contract import storage
from pipelines.contract.recipe import RunConfig
from pipelines.contract.schemas import LengthBin, Split

DOCUMENTS, VOCABULARY, EXAMPLES = "documents", "vocabulary", "examples"
PRETRAINING, FINETUNING, DISTILLATION = "pretraining", "finetuning", "distillation"
CORPUS_INPUT = "corpus"
"""Name of the documents stage's input in its key."""
BROUGHT_INPUT = "brought"
"""Name of a vocabulary that is brought in the key of the vocabulary stage."""
OUTSIDE_INPUTS = (CORPUS_INPUT, BROUGHT_INPUT)
"""Inputs that are no stages of the workspace."""

MANIFEST_NAME = "manifest.json"
REJECTS_NAME = "rejected.jsonl.gz"
ENGINE_JSON_NAME = "deepspeed.json"
METRICS_NAME = "metrics.jsonl"

VOCABULARY_NAME, TOKENIZER_NAME = "vocab.txt", "tokenizer.json"
TOKENIZER_CONFIG_NAME, SPECIAL_TOKENS_MAP_NAME = "tokenizer_config.json", "special_tokens_map.json"
CONFIG_NAME, ADDED_TOKENS_NAME = "config.json", "added_tokens.json"
"""Files of a Hugging Face directory, next to those of its tokenizer."""

ENCODER_DIRECTORY, MODEL_DIRECTORY, DATA_DIRECTORY = "encoder", "model", "data"
PRETRAINED, RANDOM = "pretrained", "random"
"""Trials of a fine-tuning task, by the weights that they are initialized from."""
CHECKPOINTS_DIRECTORY, CHECKPOINT_PREFIX = "checkpoints", "step-"

BUILDING_SUFFIX, SCRATCH_DIRECTORY, KEY_NAME = ".building", "scratch", "key.json"
PARTS_GROUP, SHARDS_GROUP = "parts", "shards"
"""Groups of finished units that the documents job records in its scratch directory."""
ROWS_GROUP, FILES_GROUP, TOKENS_GROUP = "rows", "files", "tokens"
"""Those of the examples job."""
TRASH_DIRECTORY = ".clozeworks-trash"
"""Directories are renamed into this one before they are deleted, so a kill never leaves one half deleted."""


def workspace_of(run: RunConfig) -> str:
    """The run's directory: an absolute path of a local one, the URI of a remote one."""
    return storage.local_path(run.workspace) if storage.is_local(run.workspace) else run.workspace.rstrip("/")


def length_directory(max_seq_length: int, examples: str | None = None) -> str:
    """Directory of one maximum length, below that of the examples: `length128`, or `NAME/length128` of a set."""
    directory = f"length{max_seq_length}"
    return directory if examples is None else f"{examples}/{directory}"


def directory_label(directory: str) -> str:
    """A `length_directory` for users: `128`, or `NAME/128` of a set."""
    name, _, max_seq_length = directory.rpartition("length")
    return name + max_seq_length


def length_label(length: int, max_seq_length: int) -> str:
    """A length, zero-padded to the digits of the maximum, so that names sort by length."""
    return f"{length:0{len(str(max_seq_length))}d}"


def shard_name(split: Split, index: int, count: int) -> str:
    """File name of one shard, such as `train-00003-of-00016.arrow`."""
    return f"{split}-{_number(index, count)}"


def examples_name(directory: str, length_bin: LengthBin, split: Split, index: int, count: int) -> str:
    """Name of one file of examples in a `length_directory`, such as `length128/train-00003-of-00016.arrow`."""
    return examples_prefix(directory, length_bin, split) + _number(index, count)


def examples_prefix(directory: str, length_bin: LengthBin, split: Split) -> str:
    """How the names of a bin's files begin: `length128/train-`, or `length128/train-bin064-` for one bin of several."""
    max_seq_length = int(directory.rpartition("length")[2])
    is_whole = length_bin == (0, max_seq_length)
    infix = "" if is_whole else f"bin{length_label(length_bin.up_to, max_seq_length)}-"
    return f"{directory}/{split}-{infix}"


def _number(index: int, count: int) -> str:
    return f"{index:05d}-of-{count:05d}.arrow"


def code_version() -> str:
    """Version of the installed distribution, for manifests."""
    try:
        return importlib.metadata.version("clozeworks")
    except importlib.metadata.PackageNotFoundError:
        return "source tree"


def vocabulary_size(directory: str) -> int:
    """Number of entries of a vocabulary stage's vocab.txt."""
    return len(storage.read_bytes(storage.join(directory, VOCABULARY_NAME)).decode().split("\n")) - 1
