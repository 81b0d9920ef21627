"""What an interrupted run of a stage has finished, so that the next run does not do it again.

While a stage is built, `building/` in its directory holds scratch files, the key that they are built for, and one small
JSON record for each finished unit of work (a part, a shard). A record is written after the unit's files, by rename, and
tells their sizes, so what it tells is whole. A run with another key starts from nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pipelines import storage
from pipelines.contract import MANIFEST_NAME, SCHEMA_VERSION, StageKey, clear_stage, digest_of

BUILDING_DIRECTORY = "building"
_KEY_NAME = "key.json"
_RECORD_SUFFIX = ".json"


def open_stage(directory: str, key: StageKey) -> int:
    """Prepare a stage's directory for a run: keep what was finished for the same key, clear away all else.

    Returns:
        How many finished units were found.
    """
    digest = digest_of([SCHEMA_VERSION, key.stage, key.stage_version, key.config, key.inputs])
    key_uri = storage.join(directory, BUILDING_DIRECTORY, _KEY_NAME)
    if storage.file_size_bytes(key_uri) is not None and json.loads(storage.read_bytes(key_uri)) == digest:
        storage.remove_file(storage.join(directory, MANIFEST_NAME))
        _remove_half_written(directory)
        return count_finished(directory)
    clear_stage(directory)
    storage.write_bytes(key_uri, json.dumps(digest).encode())
    return 0


def scratch_uri(directory: str, name: str) -> str:
    """Where a scratch file of a stage lies until the stage is complete."""
    return storage.join(directory, scratch_name(name))


def scratch_name(name: str) -> str:
    """A scratch file's name relative to the stage's directory."""
    return f"{BUILDING_DIRECTORY}/{name}"


def count_finished(directory: str, group: str = "") -> int:
    """How many units are finished, of all or of one group such as `parts`."""
    names = storage.list_files(scratch_uri(directory, group) if group else storage.join(directory, BUILDING_DIRECTORY))
    return sum(name.endswith(_RECORD_SUFFIX) and name != _KEY_NAME for name in names)


def finished_unit(directory: str, unit: str) -> Any | None:
    """The record of a unit that this run or an interrupted one has finished; None where it is still to be done."""
    uri = scratch_uri(directory, unit + _RECORD_SUFFIX)
    if storage.file_size_bytes(uri) is None:
        return None
    stored = json.loads(storage.read_bytes(uri))
    sizes: dict[str, int] = stored["size_bytes"]
    is_whole = all(storage.file_size_bytes(storage.join(directory, name)) == size for name, size in sizes.items())
    return stored["record"] if is_whole else None


def finish_unit(directory: str, unit: str, record: Any, files: Iterable[str] = ()) -> None:
    """Record a unit as finished; to be called when its files are in place.

    Args:
        files: names of the unit's files, relative to the stage's directory; without them at their present size, the
            unit does not count as finished.
    """
    sizes = {name: storage.file_size_bytes(storage.join(directory, name)) for name in files}
    assert None not in sizes.values(), sizes
    text = json.dumps({"record": record, "size_bytes": sizes}, sort_keys=True)
    storage.write_bytes(scratch_uri(directory, unit + _RECORD_SUFFIX), text.encode())


def close_stage(directory: str) -> None:
    """Remove scratch files and records; to be called when the manifest is written."""
    storage.remove_directory(storage.join(directory, BUILDING_DIRECTORY))
    _remove_half_written(directory)


def _remove_half_written(directory: str) -> None:
    """A killed worker leaves what it was writing under its temporary name."""
    for name in storage.list_files(directory):
        if name.endswith(storage.TEMPORARY_SUFFIX):
            storage.remove_file(storage.join(directory, name))
