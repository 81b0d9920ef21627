"""Resolves an encoder to a local directory: from a directory, a workspace, or an MLflow model registry.

Must not import torch; MLflow is imported only for one of its URIs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import digest_of, read_manifest, verify_file
from pipelines.contract.workspace import (
    ADDED_TOKENS_NAME,
    CONFIG_NAME,
    ENCODER_DIRECTORY,
    PRETRAINING,
    SPECIAL_TOKENS_MAP_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    VOCABULARY_NAME,
)

CACHE_VARIABLE = "CLOZEWORKS_CACHE"
"""Environment variable: the directory for downloaded models; by default ~/.cache/clozeworks."""

_MLFLOW_SCHEMES = ("models:/", "runs:/")
_ADDRESS = "MLFLOW_TRACKING_URI"
_MLMODEL = "MLmodel"
# Layout of mlflow.transformers: weights and configuration in one folder, the tokenizer in another.
_MODEL_FOLDER, _TOKENIZER_FOLDER = "model", "components/tokenizer"
_TOKENIZER_FILES = (
    VOCABULARY_NAME,
    TOKENIZER_NAME,
    TOKENIZER_CONFIG_NAME,
    SPECIAL_TOKENS_MAP_NAME,
    ADDED_TOKENS_NAME,
)
_VOCABULARY_FILES = _TOKENIZER_FILES[:2]
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".index.json")
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's default of seven retries takes minutes to report an unreachable server.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
_ACCEPTED = (
    "give the directory of a Hugging Face BERT, a workspace, or a registered model such as models:/NAME@champion"
)


def encoder_directory(source: str) -> str:
    """Resolve an encoder's source to a local Hugging Face directory (configuration, weights, vocabulary).

    Args:
        source: a Hugging Face directory, which is returned unchanged; a workspace, whose pre-trained encoder is used;
            or `models:/name@alias`, `models:/name/3`, `runs:/id/name`, fetched from MLFLOW_TRACKING_URI into the
            cache. A fine-tuned model is accepted, too: loading the encoder ignores its heads.

    Raises:
        InputError: the source does not exist, is not a BERT directory, or cannot be fetched from MLflow.
    """
    if source.startswith(_MLFLOW_SCHEMES):
        return _registered(source)
    if not storage.is_local(source):
        raise InputError(f"{source}: encoders are read from a local disk or from MLflow; {_ACCEPTED}")
    directory = storage.local_path(source)
    if not os.path.isdir(directory):
        raise InputError(f"{source}: no such directory; {_ACCEPTED}")
    pretraining = storage.join(directory, PRETRAINING)
    if not os.path.isfile(storage.join(directory, CONFIG_NAME)) and os.path.isdir(pretraining):
        if read_manifest(pretraining) is None:
            raise InputError(f"{source}: pre-training in this workspace is not complete; finish it, or {_ACCEPTED}")
        directory = storage.join(pretraining, ENCODER_DIRECTORY)
    _require_encoder(directory, source)
    _require_undamaged(directory)
    return directory


def encoder_digest(directory: str) -> str:
    """Hash of all that determines an encoder's output: configuration, weights and vocabulary of a local directory."""
    names = [
        name
        for name in sorted(os.listdir(directory))
        if name == CONFIG_NAME or name in _TOKENIZER_FILES or name.endswith(_WEIGHT_SUFFIXES)
    ]
    return digest_of({name: storage.sha256_of(storage.join(directory, name)) for name in names})


def cache_directory() -> str:
    """Directory of downloaded models."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "clozeworks")
    return os.environ.get(CACHE_VARIABLE) or default


def _require_encoder(directory: str, source: str) -> None:
    names = os.listdir(directory)
    if CONFIG_NAME not in names:
        raise InputError(f"{source}: neither {CONFIG_NAME} nor {PRETRAINING}/ in it; {_ACCEPTED}")
    if not any(name.endswith(_WEIGHT_SUFFIXES) for name in names):
        raise InputError(f"{source}: no weights (model.safetensors) next to {CONFIG_NAME}; {_ACCEPTED}")
    if not any(name in names for name in _VOCABULARY_FILES):
        raise InputError(
            f"{source}: neither {' nor '.join(_VOCABULARY_FILES)} next to {CONFIG_NAME}; add its vocabulary"
        )


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
        if own != file.name and (own in (CONFIG_NAME, *_TOKENIZER_FILES) or own.endswith(_WEIGHT_SUFFIXES)):
            verify_file(stage, file)


def _registered(uri: str) -> str:
    if not os.environ.get(_ADDRESS):
        raise InputError(
            f"{uri}: {_ADDRESS} is not set; set it to the model's server, or to sqlite:///<workspace>/mlflow.db"
        )
    database = os.environ[_ADDRESS].removeprefix("sqlite:///")
    if database != os.environ[_ADDRESS] and not os.path.exists(database):
        # SQLite would create an empty database for a mistyped path.
        raise InputError(f"{uri}: {_ADDRESS} = {os.environ[_ADDRESS]}: no such database")
    with _mlflow_environment():
        root = storage.join(cache_directory(), "models")
        try:
            os.makedirs(root, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=root) as scratch:
                card = _download(f"{uri.rstrip('/')}/{_MLMODEL}", storage.join(scratch, "card"), uri)
                cached = _cache_entry(root, card)
                if os.path.isdir(cached):
                    return cached
                print(f"encoders: fetching {uri} into {cached}", flush=True)
                whole = _download(uri, storage.join(scratch, "whole"), uri)
                return _installed(whole, scratch, root, uri)
        except OSError as error:
            raise InputError(f"{uri}: cannot be cached in {root} ({error}); change {CACHE_VARIABLE}") from error


def _cache_entry(root: str, card: str) -> str:
    """A model's path in the cache: MLmodel contains the id assigned by MLflow, so its hash identifies the files.

    An alias may move between two requests, and version numbers repeat between servers; the hash is unaffected.
    """
    return storage.join(root, storage.sha256_of(card)[:32])


def _download(uri: str, destination: str, shown: str) -> str:
    import mlflow

    # Passed with each call: this process may have set another server for MLflow before.
    tracking = os.environ[_ADDRESS]
    registry = os.environ.get("MLFLOW_REGISTRY_URI") or tracking
    try:
        path = mlflow.artifacts.download_artifacts(
            artifact_uri=uri, dst_path=destination, tracking_uri=tracking, registry_uri=registry
        )
        return str(path)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(" with exception ")[0]
        raise InputError(
            f"{shown}: cannot be fetched from MLflow ({reason}); check name, version or alias, and {_ADDRESS}"
        ) from error


def _installed(whole: str, scratch: str, root: str, uri: str) -> str:
    """Join the folders of a downloaded model in one directory and move it into the cache."""
    model, tokenizer = (storage.join(whole, folder) for folder in (_MODEL_FOLDER, _TOKENIZER_FOLDER))
    if not os.path.isfile(storage.join(model, CONFIG_NAME)):
        raise InputError(f"{uri}: not logged by mlflow.transformers: it has no {_MODEL_FOLDER}/{CONFIG_NAME}")
    assembled = storage.join(scratch, "assembled")
    shutil.copytree(model, assembled)
    for name in _TOKENIZER_FILES:
        source = storage.join(tokenizer, name)
        if os.path.isfile(source):
            shutil.copyfile(source, storage.join(assembled, name))
    _require_encoder(assembled, uri)
    for name in os.listdir(assembled):
        storage.flush_to_disk(storage.join(assembled, name))
    # The alias may have moved since the first request: derive the name from the downloaded files.
    cached = _cache_entry(root, storage.join(whole, _MLMODEL))
    try:
        os.rename(assembled, cached)
    except OSError:
        # Another process was faster; the same name means the same files.
        if not os.path.isdir(cached):
            raise
    return cached


@contextmanager
def _mlflow_environment() -> Iterator[None]:
    """Run MLflow without progress bars and long waits, unless the user has set these variables."""
    added = {name: value for name, value in _MLFLOW_ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
