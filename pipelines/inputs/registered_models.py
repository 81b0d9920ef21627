"""Models of an MLflow registry as local directories, downloaded once and kept in a cache.

The only module of `pipelines` that knows MLflow, and it imports it when a model is fetched: a recipe without one of
its URIs needs no MLflow.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.workspace import (
    ADDED_TOKENS_NAME,
    CONFIG_NAME,
    PRETRAINING,
    SPECIAL_TOKENS_MAP_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    VOCABULARY_NAME,
)

CACHE_VARIABLE = "CLOZEWORKS_CACHE"
"""Environment variable: the directory for what is downloaded or made once; by default ~/.cache/clozeworks."""

TOKENIZER_FILES = (
    VOCABULARY_NAME,
    TOKENIZER_NAME,
    TOKENIZER_CONFIG_NAME,
    SPECIAL_TOKENS_MAP_NAME,
    ADDED_TOKENS_NAME,
)
"""Files of a Hugging Face directory that decide the ids of a text; one of the first two is required."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".index.json")
"""Ends of the names of files with a model's weights."""

_MLFLOW_SCHEMES = ("models:/", "runs:/")
_ADDRESS = "MLFLOW_TRACKING_URI"
_MLMODEL = "MLmodel"
# Layout of mlflow.transformers: weights and configuration in one folder, the tokenizer in another.
_MODEL_FOLDER, _TOKENIZER_FOLDER = "model", "components/tokenizer"
# Of a model from code: all in one folder.
_CODE_MODEL_FOLDER = "artifacts/model"
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's default of seven retries takes minutes to report an unreachable server.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}


def is_registered(source: str) -> bool:
    """Whether a source is the URI of a model in MLflow: `models:/...` or `runs:/...`."""
    return source.startswith(_MLFLOW_SCHEMES)


def cache_directory() -> str:
    """Directory of downloaded models, and of what is made once for all workspaces."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "clozeworks")
    return os.environ.get(CACHE_VARIABLE) or default


def require_model(directory: str, source: str, remedy: str) -> None:
    """Check that a local directory has a model's configuration, weights and vocabulary.

    Args:
        source: what it was resolved from, for the line.
        remedy: what to give instead.

    Raises:
        InputError: one of the three is missing.
    """
    names = os.listdir(directory)
    if CONFIG_NAME not in names:
        raise InputError(f"{source}: neither {CONFIG_NAME} nor {PRETRAINING}/ in it; {remedy}")
    if not any(name.endswith(WEIGHT_SUFFIXES) for name in names):
        raise InputError(f"{source}: no weights (model.safetensors) next to {CONFIG_NAME}; {remedy}")
    vocabularies = TOKENIZER_FILES[:2]
    if not any(name in names for name in vocabularies):
        raise InputError(f"{source}: neither {' nor '.join(vocabularies)} next to {CONFIG_NAME}; add its vocabulary")


def registered_model(uri: str, remedy: str) -> str:
    """Fetch a model of MLFLOW_TRACKING_URI into the cache, unless it is there.

    Args:
        uri: `models:/name@alias`, `models:/name/3` or `runs:/id/name`.
        remedy: what to give instead of a model that is not complete.

    Returns:
        A Hugging Face directory with configuration, weights and vocabulary.

    Raises:
        InputError: there is no server or no such model, it is not complete, or MLflow is not installed.
    """
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
                return _installed(whole, scratch, root, uri, remedy)
        except OSError as error:
            raise InputError(f"{uri}: cannot be cached in {root} ({error}); change {CACHE_VARIABLE}") from error


def _cache_entry(root: str, card: str) -> str:
    """A model's path in the cache: MLmodel contains the id assigned by MLflow, so its hash identifies the files.

    An alias may move between two requests, and version numbers repeat between servers; the hash is unaffected.
    """
    return storage.join(root, storage.sha256_of(card)[:32])


def _download(uri: str, destination: str, shown: str) -> str:
    mlflow = _mlflow(shown)
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


def _installed(whole: str, scratch: str, root: str, uri: str, remedy: str) -> str:
    """Join the folders of a downloaded model in one directory and move it into the cache."""
    folders = [storage.join(whole, folder) for folder in (_MODEL_FOLDER, _CODE_MODEL_FOLDER)]
    model = next((folder for folder in folders if os.path.isfile(storage.join(folder, CONFIG_NAME))), None)
    if model is None:
        raise InputError(
            f"{uri}: neither {_MODEL_FOLDER}/{CONFIG_NAME}, as of mlflow.transformers, nor "
            f"{_CODE_MODEL_FOLDER}/{CONFIG_NAME}, as of Clozeworks' models from code"
        )
    tokenizer = storage.join(whole, _TOKENIZER_FOLDER)
    assembled = storage.join(scratch, "assembled")
    shutil.copytree(model, assembled)
    for name in TOKENIZER_FILES:
        source = storage.join(tokenizer, name)
        if os.path.isfile(source):
            shutil.copyfile(source, storage.join(assembled, name))
    require_model(assembled, uri, remedy)
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


def _mlflow(uri: str) -> Any:
    try:
        import mlflow
    except ImportError as error:
        raise InputError(
            f"{uri}: reading a registered model needs MLflow ({error}); pip install 'clozeworks[training]', or give a "
            "local directory"
        ) from error
    return mlflow


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
