"""Manifests: what a stage wrote, from which inputs, with which settings; and keys, which determine what it will write.

Every stage writes its own directory in the workspace and, last of all, a `manifest.json`. Its presence means that the
stage is complete. A manifest holds no clock time and no machine name, so equal recipes on equal input give equal
manifests with any runner.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import Section
from pipelines.contract.schemas import Split
from pipelines.contract.statistics import Statistics, StatisticsT, missing_or_wrong
from pipelines.contract.workspace import MANIFEST_NAME

SCHEMA_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """One file of a stage: its name relative to the stage's directory, its size and its checksum."""

    name: str
    rows: int
    size_bytes: int
    sha256: str
    statistics: dict[str, Any] = {}


class Manifest(_Record):
    """What a stage wrote, from which inputs, and with which settings."""

    schema_version: int = SCHEMA_VERSION
    stage: str
    stage_version: int
    code_version: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: tuple[FileRecord, ...]
    statistics: dict[str, Any] = {}
    _uri: str = PrivateAttr("")
    """Where it was read from, for messages; empty for one that was not read."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.model_dump() == other.model_dump()

    def statistics_as(self, model: type[StatisticsT]) -> StatisticsT:
        """The statistics as a stage's model has them (`pipelines.statistics`); unknown ones are left out.

        Raises:
            InputError: one that the model requires is missing or of another type.
        """
        try:
            return model.model_validate(self.statistics)
        except ValidationError as error:
            where = self._uri or f"manifest of stage {self.stage}"
            raise InputError(
                f"{where}: {missing_or_wrong(error)}; another version wrote it, or it was edited: restore it from a "
                "copy, or build the stage again with --restart"
            ) from error

    @property
    def digest(self) -> str:
        """Hash of the stage's output: what a later stage records as its input.

        It covers names, rows and checksums only, so a stage rebuilt to the same bytes rebuilds nothing after it.
        """
        return digest_of(
            [self.schema_version, self.stage, [[file.name, file.rows, file.sha256] for file in self.files]]
        )

    def files_of(self, split: Split, directory: str = "") -> list[FileRecord]:
        """The shards of one split, in order; `directory` is a sub-directory such as `length128`."""
        prefix = f"{directory}/{split}-" if directory else f"{split}-"
        return [file for file in self.files if file.name.startswith(prefix)]


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class StageKey:
    """What determines a stage's output: its name and version, its settings, and the digests of what it consumes."""

    def __init__(self, stage: str, stage_version: int, config: Section | Mapping[str, Any], inputs: Mapping[str, str]):
        self.stage = stage
        self.stage_version = stage_version
        self.config: dict[str, Any] = config.identity() if isinstance(config, Section) else dict(config)
        self.inputs = dict(inputs)

    def manifest(
        self, files: Sequence[FileRecord], statistics: Statistics | Mapping[str, Any], code_version: str
    ) -> Manifest:
        """The manifest of this stage once its files are written; files are put in name order."""
        return Manifest(
            stage=self.stage,
            stage_version=self.stage_version,
            code_version=code_version,
            config=self.config,
            inputs=self.inputs,
            files=tuple(sorted(files, key=lambda file: file.name)),
            statistics=statistics.to_json() if isinstance(statistics, Statistics) else dict(statistics),
        )

    @property
    def digest(self) -> str:
        """Hash of everything that determines the output: runs with equal digests build the same result."""
        return digest_of([SCHEMA_VERSION, self.stage, self.stage_version, self.config, self.inputs])

    def difference(self, directory: str) -> str | None:
        """Why the stage in `directory` has to be built; None if it is complete and matches.

        Raises:
            InputError: a newer release wrote the stage, or its manifest is damaged.
        """
        manifest = read_manifest(directory)
        if manifest is None:
            return "not built yet"
        if manifest.stage != self.stage:
            return f"its manifest is that of a stage named {manifest.stage!r}"
        if manifest.stage_version > self.stage_version:
            raise InputError(_newer(directory, f"version {manifest.stage_version}", f"{self.stage_version}"))
        if (manifest.schema_version, manifest.stage_version) != (SCHEMA_VERSION, self.stage_version):
            return "built by an older version of this stage"
        return next(self.changes(manifest), None) or _damage(directory, manifest)

    def changes(self, manifest: Manifest) -> Iterator[str]:
        """All settings and inputs in which a manifest differs from this key, settings first."""
        yield from _changed_settings(manifest.config, self.config)
        # An input that only one of them has is the least exact reason.
        shared = manifest.inputs.keys() & self.inputs.keys()
        for name in sorted({*manifest.inputs, *self.inputs}, key=lambda name: (name not in shared, name)):
            if manifest.inputs.get(name) != self.inputs.get(name):
                yield f"input {name} changed"


def _newer(directory: str, found: str, known: str) -> str:
    return (
        f"{directory}: written by a newer release ({found}; this one knows {known}); upgrade clozeworks or choose "
        "another workspace; nothing was changed"
    )


def _damage(directory: str, manifest: Manifest) -> str | None:
    for file in manifest.files:
        size_bytes = storage.file_size_bytes(storage.join(directory, file.name))
        if size_bytes != file.size_bytes:
            return f"{file.name} is {'missing' if size_bytes is None else 'not of the size the manifest states'}"
    return None


def _changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted({*old, *new}):
        before, after = old.get(key), _plain(new.get(key))
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _changed_settings(before, after, f"{prefix}{key}.")
        elif isinstance(before, list) and isinstance(after, list) and _are_tables(before, after):
            for index, (one, other) in enumerate(zip(before, after, strict=True)):
                yield from _changed_settings(one, other, f"{prefix}{key}.{index}.")
        elif before != after:
            yield f"{prefix}{key} was {json.dumps(before)}, is {json.dumps(after)}"


def _are_tables(before: list[Any], after: list[Any]) -> bool:
    """Whether both lists hold equally many tables, so that a single changed setting can be reported."""
    return len(before) == len(after) and all(isinstance(entry, dict) for entry in (*before, *after))


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def read_manifest(directory: str) -> Manifest | None:
    """Read a stage's manifest; None if the stage is not complete.

    Raises:
        InputError: the manifest is damaged, or a newer release wrote it.
    """
    uri = storage.join(directory, MANIFEST_NAME)
    if storage.file_size_bytes(uri) is None:
        return None
    data = storage.read_bytes(uri)
    try:
        version = json.loads(data)["schema_version"]
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise InputError(_newer(directory, f"schema {version}", f"{SCHEMA_VERSION}"))
        manifest = Manifest.model_validate_json(data)
    except (ValidationError, ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        cause = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InputError(
            f"{uri}: damaged, or not a manifest of this project ({cause}); restore it from a copy, or move {directory} "
            "away to rebuild the stage"
        ) from error
    manifest._uri = uri
    return manifest


def require_manifest(directory: str, stage: str, command: str) -> Manifest:
    """Read the manifest of a stage that must be complete; its files are not read (`pipelines.results.verification`).

    Args:
        directory: of the stage.
        stage: its name, which the manifest must state.
        command: that builds it.

    Raises:
        InputError: the stage is not complete, or the directory holds something else.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise InputError(f"{directory}: no {MANIFEST_NAME}, so this stage is not complete; run {command} first")
    if manifest.stage != stage:
        raise InputError(
            f"{directory}: its manifest is that of a stage named {manifest.stage!r}, expected {stage!r}; move the "
            f"directory away and run {command}"
        )
    if manifest.schema_version != SCHEMA_VERSION or not manifest.files:
        what = "names no files" if not manifest.files else f"has schema {manifest.schema_version}, not {SCHEMA_VERSION}"
        raise InputError(f"{directory}: its manifest {what}; run {command} again")
    return manifest


def write_manifest(directory: str, manifest: Manifest) -> None:
    """Write the manifest, which marks the stage as complete; call it after every file is in place."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    storage.write_bytes(storage.join(directory, MANIFEST_NAME), text.encode() + b"\n")


def record_of(directory: str, name: str, rows: int, statistics: Mapping[str, Any] | None = None) -> FileRecord:
    """Describe a finished file of a stage: size and checksum are read back from storage."""
    uri = storage.join(directory, name)
    size_bytes = storage.file_size_bytes(uri)
    assert size_bytes is not None, uri
    return FileRecord(
        name=name, rows=rows, size_bytes=size_bytes, sha256=storage.sha256_of(uri), statistics=dict(statistics or {})
    )


def verify_file(directory: str, file: FileRecord) -> None:
    """Compare a file with its record.

    Raises:
        InputError: the file is missing, or its size or checksum differ; the line names it.
    """
    uri = storage.join(directory, file.name)
    if _existing_bytes(uri) != file.size_bytes or storage.sha256_of(uri) != file.sha256:
        raise InputError(
            f"{uri}: damaged (its checksum is not the manifest's); restore it, or build the stage again with --restart"
        )


def verify_size(directory: str, file: FileRecord) -> None:
    """Compare a file's size with its record, without reading it.

    Raises:
        InputError: the file is missing, or its size differs; the line names it.
    """
    uri = storage.join(directory, file.name)
    if (found_bytes := _existing_bytes(uri)) != file.size_bytes:
        raise InputError(
            f"{uri}: has {found_bytes} bytes, but the manifest states {file.size_bytes}; restore it, or build the "
            "stage again with --restart"
        )


def _existing_bytes(uri: str) -> int:
    size_bytes = storage.file_size_bytes(uri)
    if size_bytes is None:
        raise InputError(
            f"{uri}: missing, though the manifest lists it; restore it, or build the stage again with --restart"
        )
    return size_bytes
