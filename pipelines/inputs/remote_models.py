"""Models in an object store as local directories, downloaded once and kept in the cache of registered models."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

from pyarrow import fs

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, digest_of, read_manifest
from pipelines.contract.workspace import CONFIG_NAME, ENCODER_DIRECTORY, PRETRAINING
from pipelines.inputs.registered_models import TOKENIZER_FILES, WEIGHT_SUFFIXES, cache_directory, require_model

_MODELS = "models"


class _RemoteModel(NamedTuple):
    """A model's directory, what identifies each of its files, and their records if a stage of this project wrote it."""

    directory: str
    contents: Mapping[str, object]
    records: Mapping[str, FileRecord]


def remote_model(source: str, remedy: str) -> str:
    """Fetch a model of an object store into the cache, unless it is there.

    Args:
        source: URI of a Hugging Face directory, or of a workspace, whose pre-trained encoder is used.
        remedy: what to give instead of a source that is no model.

    Returns:
        A local Hugging Face directory with configuration, weights and vocabulary.

    Raises:
        InputError: there is no such model, it is not complete, or a file is not what its stage's manifest states.
    """
    found = _find(source, remedy)
    root = storage.join(cache_directory(), _MODELS)
    cached = storage.join(root, digest_of(dict(found.contents))[:32])
    if os.path.isdir(cached):
        return cached
    storage.make_directory(root)
    print(f"encoders: fetching {found.directory} into {cached}", flush=True)
    with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=root) as scratch:
        assembled = storage.join(scratch, "assembled")
        for name in found.contents:
            _copy(storage.join(found.directory, name), storage.join(assembled, name), found.records.get(name))
        require_model(assembled, source, remedy)
        try:
            os.rename(assembled, cached)
        except OSError:
            # Another process was faster; the same name means the same files.
            if not os.path.isdir(cached):
                raise
    return cached


def _find(source: str, remedy: str) -> _RemoteModel:
    directory = source.rstrip("/")
    files = _files(directory)
    if CONFIG_NAME not in files:
        pretraining = storage.join(directory, PRETRAINING)
        if read_manifest(pretraining) is not None:
            directory = storage.join(pretraining, ENCODER_DIRECTORY)
            files = _files(directory)
        elif PRETRAINING in storage.list_directories(directory):
            raise InputError(f"{source}: pre-training in this workspace is not complete; finish it, or {remedy}")
    if not files:
        raise InputError(f"{source}: no such directory, or no model in it; {remedy}")
    records = _records(directory)
    if all(name in records for name in files):
        return _RemoteModel(directory, {name: records[name].sha256 for name in files}, records)
    contents = {name: [directory, int(info.size), int(info.mtime_ns or 0)] for name, info in files.items()}
    return _RemoteModel(directory, contents, records)


def _files(directory: str) -> dict[str, fs.FileInfo]:
    """The files that decide a model's output, directly in a directory."""
    filesystem, path = storage.filesystem_of(directory)
    found = {info.base_name: info for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))}
    return {
        name: info
        for name, info in sorted(found.items())
        if info.is_file and (name == CONFIG_NAME or name in TOKENIZER_FILES or name.endswith(WEIGHT_SUFFIXES))
    }


def _copy(source: str, target: str, record: FileRecord | None) -> None:
    """Download one file, and compare it with its record."""
    storage.write_bytes(target, storage.read_bytes(source))
    if record is not None and storage.sha256_of(target) != record.sha256:
        raise InputError(
            f"{source}: damaged (its checksum is not the manifest's); restore it, or build the stage again with "
            "--restart"
        )


def _records(directory: str) -> dict[str, FileRecord]:
    """Records of the files by the manifest of the stage that wrote them; empty for a model from elsewhere."""
    stage, _, name = directory.rpartition("/")
    try:
        manifest = read_manifest(stage)
    except InputError:
        return {}  # not our manifest
    prefix = f"{name}/"
    files = manifest.files if manifest else ()
    return {file.name.removeprefix(prefix): file for file in files if file.name.startswith(prefix)}
