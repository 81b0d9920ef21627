"""Where an encoder comes from: a directory, a workspace, or a model of an MLflow registry, made a local directory.

No torch here, and MLflow is imported only for one of its URIs.
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
# What mlflow.transformers writes: weights and configuration in one folder, the tokenizer in another.
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
    # MLflow's own seven tries take minutes until they tell that nobody answers.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
_ACCEPTED = (
    "give the directory of a Hugging Face BERT, a workspace, or a registered model such as models:/NAME@champion"
)


def encoder_directory(source: str) -> str:
    """The local Hugging Face directory (configuration, weights, vocabulary) behind what a person names.

    Args:
        source: a Hugging Face directory, which is returned as it is; a workspace, whose pre-trained encoder is taken;
            or `models:/name@alias`, `models:/name/3`, `runs:/id/name`, asked for at MLFLOW_TRACKING_URI and kept in
            the cache. A fine-tuned model is one as well: its heads are left aside by whoever loads the encoder.

    Raises:
        InputError: there is no such source, it is no BERT directory, or MLflow cannot give it.
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
    """Hash of all that decides an encoder's answers: configuration, weights and vocabulary of a local directory."""
    names = [
        name
        for name in sorted(os.listdir(directory))
        if name == CONFIG_NAME or name in _TOKENIZER_FILES or name.endswith(_WEIGHT_SUFFIXES)
    ]
    return digest_of({name: storage.sha256_of(storage.join(directory, name)) for name in names})


def cache_directory() -> str:
    """Where downloaded models are kept."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "clozeworks")
    return os.environ.get(CACHE_VARIABLE) or default


def _require_encoder(directory: str, source: str) -> None:
    names = os.listdir(directory)
    if CONFIG_NAME not in names:
        raise InputError(f"{source}: neither {CONFIG_NAME} nor {PRETRAINING}/ in it; {_ACCEPTED}")
    if not any(name.endswith(_WEIGHT_SUFFIXES) for name in names):
        raise InputError(f"{source}: no weights (model.safetensors) beside {CONFIG_NAME}; {_ACCEPTED}")
    if not any(name in names for name in _VOCABULARY_FILES):
        raise InputError(
            f"{source}: neither {' nor '.join(_VOCABULARY_FILES)} beside {CONFIG_NAME}; add its vocabulary"
        )


def _require_undamaged(directory: str) -> None:
    """Compare the files of an encoder that a stage of ours wrote with that stage's manifest.

    Raises:
        InputError: one of them is damaged.
    """
    stage, _, name = directory.rstrip("/").rpartition("/")
    try:
        manifest = read_manifest(stage)
    except InputError:
        return  # a file of that name that is not ours, next to an encoder from elsewhere
    for file in manifest.files if manifest else ():
        own = file.name.removeprefix(f"{name}/")
        if own != file.name and (own in (CONFIG_NAME, *_TOKENIZER_FILES) or own.endswith(_WEIGHT_SUFFIXES)):
            verify_file(stage, file)


def _registered(uri: str) -> str:
    if not os.environ.get(_ADDRESS):
        raise InputError(
            f"{uri}: {_ADDRESS} is not set; set it to where this model is, a server or sqlite:///<workspace>/mlflow.db"
        )
    database = os.environ[_ADDRESS].removeprefix("sqlite:///")
    if database != os.environ[_ADDRESS] and not os.path.exists(database):
        # SQLite would make an empty one of a mistyped path.
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
            raise InputError(f"{uri}: cannot be kept in {root} ({error}); set {CACHE_VARIABLE} to a place") from error


def _cache_entry(root: str, card: str) -> str:
    """A model's place in the cache: MLmodel holds the id that MLflow gave it, so its hash names these very files.

    An alias may move between two questions, and numbers of versions repeat between servers; this changes with neither.
    """
    return storage.join(root, storage.sha256_of(card)[:32])


def _download(uri: str, destination: str, shown: str) -> str:
    import mlflow

    # Said with each call: a process may have told MLflow another server before.
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
            f"{shown}: MLflow cannot give it ({reason}); check name, version or alias, and {_ADDRESS}"
        ) from error


def _installed(whole: str, scratch: str, root: str, uri: str) -> str:
    """Join the folders of a downloaded model in one directory and move it into the cache."""
    model, tokenizer = (storage.join(whole, folder) for folder in (_MODEL_FOLDER, _TOKENIZER_FOLDER))
    if not os.path.isfile(storage.join(model, CONFIG_NAME)):
        raise InputError(f"{uri}: not logged by mlflow.transformers, there is no {_MODEL_FOLDER}/{CONFIG_NAME} in it")
    assembled = storage.join(scratch, "assembled")
    shutil.copytree(model, assembled)
    for name in _TOKENIZER_FILES:
        source = storage.join(tokenizer, name)
        if os.path.isfile(source):
            shutil.copyfile(source, storage.join(assembled, name))
    _require_encoder(assembled, uri)
    for name in os.listdir(assembled):
        storage.flush_to_disk(storage.join(assembled, name))
    # The alias may have moved since the first question: the name is that of what was downloaded.
    cached = _cache_entry(root, storage.join(whole, _MLMODEL))
    try:
        os.rename(assembled, cached)
    except OSError:
        # Another process was quicker; the same name holds the same files.
        if not os.path.isdir(cached):
            raise
    return cached


@contextmanager
def _mlflow_environment() -> Iterator[None]:
    """MLflow without progress bars and long waits, where a person has not set these otherwise."""
    added = {name: value for name, value in _MLFLOW_ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
