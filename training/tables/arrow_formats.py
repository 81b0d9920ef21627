"""Reads tables from binary files: Parquet, and the directories that `datasets.save_to_disk` writes.

Such a directory has `state.json`, which lists its Arrow files in order, and `dataset_info.json`, which describes the
columns; a `DatasetDict` is a directory of these, one per split, next to `dataset_dict.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from training.settings.tables import TableConfig
from training.tables.rows import Cell, Columns

_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_METADATA = b"huggingface"


def read_parquet(path: str, _table: TableConfig, wanted: Sequence[str]) -> Columns:
    """A Parquet file.

    Raises:
        InputError: the file cannot be read as Parquet.
    """
    filesystem, inner_path = storage.filesystem_of(path)
    try:
        with filesystem.open_input_file(inner_path) as stream:
            parquet = pq.ParquetFile(stream)
            schema = parquet.schema_arrow
            _require_once(path, schema.names, wanted)
            found = parquet.read(columns=[name for name in wanted if name in schema.names])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({_first_line(error)}); check the file") from error
    return _columns(path, found, schema.names, _stated_features(schema.metadata or {}), wanted)


def read_directory(path: str, _table: TableConfig, wanted: Sequence[str]) -> Columns:
    """A directory of one split, as written by `datasets.save_to_disk`.

    Raises:
        InputError: it holds several splits, lacks a file, has rows that were selected but not written, or cannot be
            read.
    """
    splits = storage.join(path, _SPLITS)
    if storage.file_size_bytes(splits) is not None:
        names = _json(splits).get("splits", [])
        raise InputError(
            f"{path}: has the splits {', '.join(map(str, names))}; name the directory of one, such as "
            f"{storage.join(path, str(next(iter(names), 'train')))}"
        )
    state = storage.join(path, _STATE)
    if storage.file_size_bytes(state) is None:
        raise InputError(f"{path}: has no {_STATE}; give a directory that datasets.save_to_disk wrote, or a file")
    described = _json(state)
    if described.get("_indices_data_files"):
        raise InputError(
            f"{path}: its rows are chosen by indices, in the layout of datasets below 2.0; load it with datasets and "
            "write it with save_to_disk again"
        )
    tables = [_stream(storage.join(path, name), wanted) for name in _listed_files(described)]
    if not tables:
        raise InputError(f"{path}: {_STATE} lists no files; write the data set with rows")
    info = storage.join(path, _INFO)
    features = _json(info).get("features") if storage.file_size_bytes(info) is not None else None
    try:
        rows = pa.concat_tables([found for found, _ in tables])
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: its files have columns of different types; write the data set again") from error
    return _columns(path, rows, tables[0][1], features if isinstance(features, dict) else {}, wanted)


def _listed_files(described: dict[str, Any]) -> list[str]:
    """Names of the Arrow files that state.json lists, in their order."""
    listed = described.get("_data_files")
    found = listed if isinstance(listed, list) else []
    return [str(each["filename"]) for each in found if isinstance(each, dict) and "filename" in each]


def _stated_features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """The columns as `datasets` describes them in a Parquet file; nothing if the description is of another form."""
    try:
        found = json.loads(metadata.get(_METADATA, b"{}"))
    except ValueError:
        return {}
    for key in ("info", "features"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _require_once(path: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    twice = next((name for name in wanted if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: has the column {twice!r} twice; rename one")


def _stream(path: str, wanted: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """The wanted columns of an Arrow stream, and the names of all."""
    if storage.file_size_bytes(path) is None:
        raise InputError(f"{path}: missing, and {_STATE} lists it; copy the directory again")
    filesystem, inner_path = storage.filesystem_of(path)
    try:
        with filesystem.open_input_stream(inner_path, compression=None) as stream:
            table = pa.ipc.open_stream(stream).read_all()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as an Arrow stream ({_first_line(error)}); copy it again") from error
    _require_once(path, table.column_names, wanted)
    return table.select([name for name in wanted if name in table.column_names]), table.column_names


def _columns(
    path: str, table: pa.Table, names: Sequence[str], features: dict[str, Any], wanted: Sequence[str]
) -> Columns:
    cells = {name: _cells(path, table, name) for name in wanted if name in table.column_names}
    class_names = {name: found for name in cells if (found := _class_names(features.get(name)))}
    for name, found in class_names.items():
        cells[name] = [_named(cell, found) for cell in cells[name]]
    return Columns(path, range(1, table.num_rows + 1), False, names, cells, class_names)


def _cells(path: str, table: pa.Table, name: str) -> list[Cell]:
    column = table.column(name)
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError) as error:  # such as a date after the year 9999
        raise InputError(
            f"{path}: column {name!r} is of type {column.type}, with a value that cannot be read "
            f"({_first_line(error)}); texts are strings, and labels strings or numbers"
        ) from error


def _class_names(feature: Any) -> tuple[str, ...]:
    """Names of a ClassLabel, or of a list of ClassLabels, in the forms that releases of `datasets` write."""
    if isinstance(feature, list) and len(feature) == 1:
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return ()
    if feature.get("_type") in ("Sequence", "List", "LargeList"):
        return _class_names(feature.get("feature"))
    return tuple(str(name).strip() for name in feature.get("names", ())) if feature.get("_type") == "ClassLabel" else ()


def _named(cell: Any, names: tuple[str, ...]) -> Any:
    """Class numbers as names; a number without a name, such as the -1 of unlabelled test rows, is missing."""
    if isinstance(cell, list):
        return [_named(each, names) for each in cell]
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else None


def _json(path: str) -> dict[str, Any]:
    try:
        found = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); copy the directory again") from error
    return found if isinstance(found, dict) else {}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
