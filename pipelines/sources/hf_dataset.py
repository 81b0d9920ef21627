"""Directories that `datasets.Dataset.save_to_disk` wrote: one document per row, its text in a column.

`state.json` names the data files, which are Arrow IPC streams; other files in the directory, such as the cache of
`map`, belong to no data set. A `DatasetDict` is a directory of such directories, one of which an input names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pyarrow import fs

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown
from pipelines.inputs.file_patterns import find_files
from pipelines.reading.source import InputFile, RawDocument, Reject
from pipelines.reading.text_columns import check_column
from pipelines.reading.unpacking import StorageFaultError
from pipelines.settings.documents import SourceConfig
from pipelines.sources.arrow_ipc import ArrowIpc, schema_of

_STATE, _SPLITS = "state.json", "dataset_dict.json"


class HfDataset:
    """Finds the data files by `state.json`, and reads them as `format = "arrow"` does."""

    def find(self, config: SourceConfig, workspace: str | None = None) -> list[InputFile]:
        found: dict[str, InputFile] = {}
        for directory in config.inputs:
            found.update((file.uri, file) for file in _data_files(directory, workspace))
        files = sorted(found.values(), key=lambda file: (file.name, file.uri))
        check_column(files, config, schema_of)
        return files

    def read(self, file: InputFile, config: SourceConfig) -> Iterator[RawDocument | Reject]:
        yield from ArrowIpc().read(file, config)


def _data_files(directory: str, workspace: str | None) -> list[InputFile]:
    """The data files of one directory.

    Raises:
        InputError: it is not a data set of one split, or lacks a file.
    """
    where = f"documents.sources: inputs = {directory!r}"
    if (splits := _read_json(directory, _SPLITS, where)) is not None:
        known = ", ".join(map(str, splits.get("splits", ())))
        raise InputError(
            f"{where}: a DatasetDict with the splits {shown(known)}; name the directory of one, such as "
            f"{storage.join(directory, shown(known.partition(',')[0]))!r}"
        )
    state = _read_json(directory, _STATE, where)
    if state is None:
        raise InputError(
            f"{where}: no {_STATE} there; name a directory that datasets.Dataset.save_to_disk wrote, or set "
            "format = 'arrow' for single files"
        )
    if state.get("_indices_data_files"):
        raise InputError(
            f"{where}: its rows are chosen by an index, as releases of datasets before 2.0 stored it; load it and "
            "save_to_disk it again with a newer release"
        )
    try:
        names = {str(entry["filename"]) for entry in state["_data_files"]}
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: its {_STATE} names no data files; save the data set again") from error
    files = [file for file in find_files((directory,), workspace) if file.uri.rpartition("/")[2] in names]
    if missing := names - {file.uri.rpartition("/")[2] for file in files}:
        raise InputError(f"{where}: {_STATE} names {shown(min(missing))}, which is not there; copy the data set again")
    return files


def _read_json(directory: str, name: str, where: str) -> dict[str, Any] | None:
    """The object in a file of the directory; None if there is no such file.

    Raises:
        InputError: it is no JSON object.
        StorageFaultError: it cannot be read.
    """
    uri = storage.join(directory, name)
    filesystem, path = storage.filesystem_of(uri)
    try:
        if filesystem.get_file_info(path).type != fs.FileType.File:
            return None
        value = json.loads(storage.read_bytes(uri))
    except OSError as error:
        raise StorageFaultError.of(uri, "reading", error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: its {name} is not JSON ({error}); save the data set again") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: its {name} is not a JSON object; save the data set again")
    return value
