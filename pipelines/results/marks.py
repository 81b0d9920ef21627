"""Marks of build directories: which stage they belong to, and what they are built for."""

from __future__ import annotations

import json
import os
from typing import Any

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, read_manifest
from pipelines.contract.workspace import BUILDING_SUFFIX, KEY_NAME, SCRATCH_DIRECTORY

EARLIER_SCRATCH_DIRECTORY = "building"
"""Where releases before build directories kept their mark, inside the stage's own directory."""


_MOST_NAMES_SHOWN = 3


def place_of(directory: str) -> str:
    """The real path of a stage's directory, which may be a link to another disk.

    The build directory must be next to the real one, and the link must stay.
    """
    if not storage.is_local(directory):
        return directory.rstrip("/")
    path = storage.local_path(directory)
    return os.path.realpath(path) if os.path.islink(path) else directory.rstrip("/")


def building_directory(directory: str) -> str:
    """Where the stage of `directory` is built until it is complete."""
    return place_of(directory) + BUILDING_SUFFIX


RESTART = "anew"
"""Value of `--restart` without a name: what an interrupted build has finished is repeated."""


def is_resumable(mark: dict[str, Any] | None, key: StageKey, restart: str | None) -> bool:
    """Whether a run with this key and this `--restart` resumes the build with this mark."""
    if mark is None or mark["key"] != key.digest:
        return False
    return restart is None or (restart != RESTART and mark.get("restart") == restart)


def write_mark(directory: str, key: StageKey, restart: str | None = None) -> None:
    """Mark the build directory as this project's, and as the build of a key."""
    mark_as_build(building_directory(directory), key, restart)


def mark_as_build(building: str, key: StageKey, restart: str | None = None) -> None:
    """Mark a directory as the build of a key, wherever it is."""
    mark = {
        "stage": key.stage,
        "key": key.digest,
        "config": key.config,
        "inputs": key.inputs,
        "restart": restart,
    }
    text = json.dumps(mark, sort_keys=True, ensure_ascii=False)
    storage.write_bytes(storage.join(building, SCRATCH_DIRECTORY, KEY_NAME), text.encode())


def read_mark(directory: str) -> dict[str, Any] | None:
    """The mark of the build directory: `stage`, `key`, `config`, `inputs`; None if nothing is being built.

    Raises:
        InputError: there is a directory of that name without a mark.
    """
    building = building_directory(directory)
    uri = storage.join(building, SCRATCH_DIRECTORY, KEY_NAME)
    if storage.file_size_bytes(uri) is not None:
        try:
            mark = json.loads(storage.read_bytes(uri))
            if isinstance(mark, dict) and isinstance(mark.get("key"), str):
                return mark
        except ValueError:
            pass
        raise InputError(f"{uri}: damaged; move {building} away to rebuild the stage")
    # A replaced result that is not renamed yet: its manifest is its mark.
    if (manifest := read_manifest(building)) is not None:
        return {"stage": manifest.stage, "key": _key_of(manifest).digest, "config": manifest.config, "inputs": {}}
    refuse_foreign(building)
    return None


def is_open(directory: str) -> bool:
    """Whether there is a build that has not replaced the result yet."""
    mark = storage.join(building_directory(directory), SCRATCH_DIRECTORY, KEY_NAME)
    return storage.file_size_bytes(mark) is not None


def require_ours(directory: str, stage: str) -> None:
    """Check that a directory may be replaced: it is absent, empty, or holds a result of this stage.

    Raises:
        InputError: it holds something else, or is a mount point, which cannot be replaced.
    """
    place = place_of(directory)
    if storage.is_local(directory) and os.path.ismount(place):
        raise InputError(
            f"{directory}: {place} is a mount point, which a new result cannot replace; create a directory on that "
            f"disk, and make {directory} a link to it"
        )
    manifest = read_manifest(directory)
    if manifest is None:
        refuse_foreign(directory)
    elif manifest.stage != stage:
        raise InputError(
            f"{directory}: holds the result of a stage named {manifest.stage!r}, not of {stage!r}; move it away or "
            "choose another workspace"
        )


def refuse_foreign(directory: str) -> None:
    # A kill while the mark was written leaves nothing else.
    names = [name for name in storage.list_files(directory) if not _is_half_written_mark(name)]
    if names and storage.file_size_bytes(storage.join(directory, EARLIER_SCRATCH_DIRECTORY, KEY_NAME)) is None:
        more = f" and {len(names) - _MOST_NAMES_SHOWN} more" if len(names) > _MOST_NAMES_SHOWN else ""
        shown = ", ".join(name.encode("unicode_escape").decode() for name in names[:_MOST_NAMES_SHOWN])
        raise InputError(
            f"{directory}: holds files that no stage of this project wrote ({shown}{more}); move them away or choose "
            "another workspace"
        )


def _is_half_written_mark(name: str) -> bool:
    return name.startswith(f"{SCRATCH_DIRECTORY}/{KEY_NAME}.") and name.endswith(storage.TEMPORARY_SUFFIX)


def _key_of(manifest: Manifest) -> StageKey:
    return StageKey(manifest.stage, manifest.stage_version, manifest.config, manifest.inputs)
