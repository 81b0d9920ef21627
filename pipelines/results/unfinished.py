"""What an interrupted build of a stage has finished, so that the next run does not repeat it.

While a stage is built, `scratch/` in its build directory (see `builds`) holds temporary files and one small JSON record
for each finished unit of work (a part, a shard). A record is written after the unit's files, by rename, and states
their sizes, so a record that exists describes files that are complete.

`directory` is the build directory throughout.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pipelines.contract import storage
from pipelines.contract.workspace import KEY_NAME, SCRATCH_DIRECTORY

_RECORD_SUFFIX = ".json"


def scratch_uri(directory: str, name: str) -> str:
    """Path of a temporary file of a stage, until the stage is complete."""
    return storage.join(directory, scratch_name(name))


def scratch_name(name: str) -> str:
    """A temporary file's name relative to the build directory."""
    return f"{SCRATCH_DIRECTORY}/{name}"


def count_finished(directory: str, group: str = "") -> int:
    """Number of finished units, of all or of one group such as `parts`."""
    names = storage.list_files(scratch_uri(directory, group) if group else storage.join(directory, SCRATCH_DIRECTORY))
    return sum(name.endswith(_RECORD_SUFFIX) and name != KEY_NAME for name in names)


def finished_unit(directory: str, unit: str) -> Any | None:
    """The record of a unit that this run or an interrupted one has finished; None if it is not done."""
    uri = scratch_uri(directory, unit + _RECORD_SUFFIX)
    if storage.file_size_bytes(uri) is None:
        return None
    try:
        stored = json.loads(storage.read_bytes(uri))
        sizes: dict[str, int] = dict(stored["size_bytes"])
        record = stored["record"]
    except (ValueError, TypeError, KeyError):
        return None  # damaged: the unit is repeated
    is_complete = all(storage.file_size_bytes(storage.join(directory, name)) == size for name, size in sizes.items())
    return record if is_complete else None


def finish_unit(directory: str, unit: str, record: Any, files: Iterable[str] = ()) -> None:
    """Record a unit as finished; call it when its files are in place.

    Args:
        directory: in which the stage is built.
        unit: name of the unit, such as `parts/part-00003`.
        record: JSON value that `finished_unit` returns.
        files: names of the unit's files, relative to the directory; if one is later missing or of another size, the
            unit does not count as finished.
    """
    sizes = {name: storage.file_size_bytes(storage.join(directory, name)) for name in files}
    assert None not in sizes.values(), sizes
    text = json.dumps({"record": record, "size_bytes": sizes}, sort_keys=True)
    storage.write_bytes(scratch_uri(directory, unit + _RECORD_SUFFIX), text.encode())
