"""Check that the manifests of a workspace match each other, and that exactly their files exist."""

from __future__ import annotations

import re

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import SCHEMA_VERSION, FileRecord, Manifest, read_manifest
from pipelines.contract.workspace import (
    BROUGHT_INPUT,
    BUILDING_SUFFIX,
    CORPUS_INPUT,
    DOCUMENTS,
    EXAMPLES,
    MANIFEST_NAME,
    OUTSIDE_INPUTS,
    SCRATCH_DIRECTORY,
    VOCABULARY,
)
from pipelines.stage_keys import DOCUMENTS_VERSION, EXAMPLES_VERSION, VOCABULARY_VERSION
from pipelines.validation.faults import FaultError

_VERSIONS = {DOCUMENTS: DOCUMENTS_VERSION, VOCABULARY: VOCABULARY_VERSION, EXAMPLES: EXAMPLES_VERSION}
STAGES = tuple(_VERSIONS)
_INPUTS: dict[str, tuple[str, ...]] = {
    DOCUMENTS: (CORPUS_INPUT,),
    VOCABULARY: (DOCUMENTS,),
    EXAMPLES: (DOCUMENTS, VOCABULARY),
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


def stated(directory: str) -> Manifest | None:
    """The manifest of a directory, None if there is none.

    Raises:
        FaultError: it is damaged, or another release wrote it.
    """
    try:
        return read_manifest(directory)
    except InputError as error:
        raise FaultError(str(error)) from error


def sibling(directory: str, stage: str) -> str:
    """The directory of another stage of the same workspace."""
    return storage.join(directory.rstrip("/").rpartition("/")[0] or ".", stage)


def check_manifest(directory: str, manifest: Manifest) -> None:
    """Check a manifest's version and the records of its files, without opening the files.

    Raises:
        FaultError: another release wrote it, a file's record is invalid, or a file is missing.
    """
    where = f"{directory}/{MANIFEST_NAME}"
    for name, found, known in (
        ("schema_version", manifest.schema_version, SCHEMA_VERSION),
        ("stage_version", manifest.stage_version, _VERSIONS[manifest.stage]),
    ):
        if found != known:
            raise FaultError(
                f"{where}: {name} is {found}, this release writes {known}: the files may mean something else; "
                f"run clozeworks {manifest.stage} again, or use the release that wrote them"
            )
    if not manifest.files:
        raise FaultError(f"{where}: names no file")
    seen: set[str] = set()
    for file in manifest.files:
        _check_record(where, file, seen)
        seen.add(file.name)
        if storage.file_size_bytes(storage.join(directory, file.name)) is None:
            raise FaultError(f"{directory}/{file.name}: missing, though the manifest lists it")


def check_strays(directory: str, manifest: Manifest) -> None:
    """Check that a stage's directory holds nothing but what its manifest names.

    Raises:
        FaultError: there is another file.
    """
    known = {MANIFEST_NAME, *(file.name for file in manifest.files)}
    for name in storage.list_files(directory):
        if name not in known:
            raise FaultError(f"{directory}/{name}: {_stray(name)}")


def _check_record(where: str, file: FileRecord, seen: set[str]) -> None:
    parts = file.name.split("/")
    if not all(parts) or {".", ".."} & {*parts} or "\\" in file.name or not file.name.isprintable():
        raise FaultError(f"{where}: names the file {file.name!r}, which is not a path in this directory")
    if file.name in seen:
        raise FaultError(f"{where}: names {file.name} twice")
    if file.rows < 0 or file.size_bytes < 0 or not _SHA256.fullmatch(file.sha256):
        raise FaultError(
            f"{where}: {file.name} has rows = {file.rows}, size_bytes = {file.size_bytes}, sha256 = {file.sha256!r}, "
            "which no file can have"
        )


def _stray(name: str) -> str:
    if name.split("/")[0] in (SCRATCH_DIRECTORY, f"{SCRATCH_DIRECTORY}{BUILDING_SUFFIX}", "building"):
        return "left by an interrupted run; run the stage's command again, or delete it"
    if name.endswith(storage.TEMPORARY_SUFFIX):
        return "half written; delete it"
    return "the manifest does not name it, so it is not part of the stage; move it away"


def check_inputs(directory: str, manifest: Manifest) -> None:
    """Check that a stage was made from the stages next to it, as far as these exist.

    Raises:
        FaultError: the digest of an input is invalid, or not that of the stage in the workspace.
    """
    where = f"{directory}/{MANIFEST_NAME}"
    expected = _INPUTS[manifest.stage]
    if manifest.stage == VOCABULARY and BROUGHT_INPUT in manifest.inputs:
        expected = (*expected, BROUGHT_INPUT)
    if sorted(manifest.inputs) != sorted(expected):
        raise FaultError(
            f"{where}: names the inputs {', '.join(sorted(manifest.inputs)) or 'none'}; {manifest.stage} is made from "
            f"{', '.join(expected)}"
        )
    for name in expected:
        digest = manifest.inputs[name]
        if not _SHA256.fullmatch(digest) or not digest.strip("0"):
            raise FaultError(f"{where}: inputs.{name} = {digest!r} is not a digest")
        if name in OUTSIDE_INPUTS:
            continue
        source = sibling(directory, name)
        found = stated(source)
        if found is not None and found.digest != digest:
            raise FaultError(
                f"{directory}: made from other {name} (digest {digest[:12]}) than those in {source} "
                f"({found.digest[:12]}); run clozeworks {manifest.stage} again"
            )
