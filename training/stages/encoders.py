"""Resolves an encoder to a local directory: from a directory, a workspace, a checkpoint, or an MLflow registry.

What is in an object store or a registry is fetched into a cache.

Must not import torch.
"""

from __future__ import annotations

import os

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import digest_of, read_manifest, verify_file
from pipelines.contract.workspace import CONFIG_NAME, ENCODER_DIRECTORY, PRETRAINING
from pipelines.inputs.registered_models import (
    TOKENIZER_FILES,
    WEIGHT_SUFFIXES,
    cache_directory,
    is_registered,
    registered_model,
    require_model,
)
from pipelines.inputs.remote_models import remote_model
from training.settings.tasks import load
from training.stages.checkpoint_source import EXPORTER, checkpoint_of

_CACHED_CHECKPOINTS = "checkpoints"
_ACCEPTED = (
    "give the directory of a Hugging Face BERT, a workspace, a checkpoint such as WORKSPACE@step-1000 (each a path or "
    "a URI such as s3://bucket/run), or a registered model such as models:/NAME@champion"
)


def encoder_directory(source: str) -> str:
    """Resolve an encoder's source to a local Hugging Face directory (configuration, weights, vocabulary).

    Args:
        source: a Hugging Face directory, which is returned unchanged; a workspace, whose pre-trained encoder is used;
            `WORKSPACE@step-1000` or `WORKSPACE@latest`, a checkpoint of its pre-training, exported into the cache;
            or `models:/name@alias`, `models:/name/3`, `runs:/id/name`, fetched from MLFLOW_TRACKING_URI into the
            cache. Directories and workspaces may be URIs such as `s3://bucket/run`, which are fetched, too. A
            fine-tuned model is accepted, too: loading the encoder ignores its heads.

    Raises:
        InputError: the source does not exist, is not a BERT directory, or cannot be fetched from MLflow.
    """
    if (checkpoint := checkpoint_of(source)) is not None:
        cache = storage.join(cache_directory(), _CACHED_CHECKPOINTS)
        return str(load(EXPORTER)(checkpoint, cache, lambda line: print(f"encoders: {line}", flush=True)))
    if is_registered(source):
        return registered_model(source, _ACCEPTED)
    if not storage.is_local(source):
        return remote_model(source, _ACCEPTED)
    directory = storage.local_path(source)
    if not os.path.isdir(directory):
        raise InputError(f"{source}: no such directory; {_ACCEPTED}")
    pretraining = storage.join(directory, PRETRAINING)
    if not os.path.isfile(storage.join(directory, CONFIG_NAME)) and os.path.isdir(pretraining):
        if read_manifest(pretraining) is None:
            raise InputError(f"{source}: pre-training in this workspace is not complete; finish it, or {_ACCEPTED}")
        directory = storage.join(pretraining, ENCODER_DIRECTORY)
    require_model(directory, source, _ACCEPTED)
    _require_undamaged(directory)
    return directory


def is_elsewhere(source: str) -> bool:
    """Whether an encoder, by its name, is in a registry or a bucket, and not on a local disk."""
    return is_registered(source) or not storage.is_local(source)


def source_digest(source: str) -> str:
    """Hash of all that determines the output of an encoder, given by its source.

    A registered model is fetched for it, since an alias may have moved. A checkpoint is not exported: its manifest has
    the checksums.

    Raises:
        InputError: as `encoder_directory`.
    """
    if (checkpoint := checkpoint_of(source)) is not None:
        return checkpoint.digest
    return encoder_digest(encoder_directory(source))


def encoder_digest(directory: str) -> str:
    """Hash of all that determines an encoder's output: configuration, weights and vocabulary of a local directory."""
    names = [
        name
        for name in sorted(os.listdir(directory))
        if name == CONFIG_NAME or name in TOKENIZER_FILES or name.endswith(WEIGHT_SUFFIXES)
    ]
    return digest_of({name: storage.sha256_of(storage.join(directory, name)) for name in names})


def _require_undamaged(directory: str) -> None:
    """Compare the files of an encoder written by one of our stages with that stage's manifest.

    Raises:
        InputError: one of them is damaged.
    """
    stage, _, name = directory.rstrip("/").rpartition("/")
    try:
        manifest = read_manifest(stage)
    except InputError:
        return  # not our manifest: the encoder is from elsewhere
    for file in manifest.files if manifest else ():
        own = file.name.removeprefix(f"{name}/")
        if own != file.name and (own in (CONFIG_NAME, *TOKENIZER_FILES) or own.endswith(WEIGHT_SUFFIXES)):
            verify_file(stage, file)
