"""Shared by the checks of `pipelines.validate`: fault messages, and reading files that may be damaged."""

from __future__ import annotations

from typing import TypeVar

import pyarrow as pa
from pydantic import ValidationError

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, Manifest
from pipelines.contract.recipe import Section
from pipelines.contract.workspace import MANIFEST_NAME, VOCABULARY_NAME
from pipelines.jobs.arrow_files import read_table
from pipelines.wordpiece.tokenizer_settings import TokenizerSettings, stage_settings

Config = TypeVar("Config", bound=Section)


class FaultError(InputError):
    """A file that is not what its manifest says."""


def compare(where: str, name: str, stated: object, found: object) -> None:
    """Compare a value in the manifest with that computed from the files.

    Raises:
        FaultError: they differ, or one is a boolean and the other a number.
    """
    if stated != found or isinstance(stated, bool) != isinstance(found, bool):
        raise FaultError(f"{where}: the manifest states {name} = {_shown(stated)}, the files give {_shown(found)}")


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def compare_names(directory: str, files: list[FileRecord], expected: list[str]) -> None:
    """Check that a manifest lists the files of its stage and no others."""
    for name in sorted({file.name for file in files} ^ set(expected)):
        what = "is missing from the manifest" if name in expected else "is not a file that this stage writes"
        raise FaultError(f"{directory}/{name}: {what}")


def config_of(directory: str, manifest: Manifest, section: type[Config]) -> Config:
    """The settings that a manifest states, validated like those of a recipe.

    Raises:
        FaultError: they are not settings of this version, or not all of them.
    """
    where = f"{directory}/{MANIFEST_NAME}"
    try:
        config = section.model_validate(manifest.config)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("config", *first["loc"])))
        raise FaultError(f"{where}: {place}: {first['msg']}") from error
    settings = config.identity()
    for name in sorted({*settings, *manifest.config}):
        if name not in manifest.config or manifest.config[name] != settings[name]:
            stated = manifest.config.get(name, "absent")
            raise FaultError(f"{where}: config.{name} is {_shown(stated)}, and means {_shown(settings[name])}")
    return config


def tokens_of(vocabulary_directory: str) -> list[str]:
    """The entries of vocab.txt."""
    uri = storage.join(vocabulary_directory, VOCABULARY_NAME)
    try:
        lines = storage.read_bytes(uri).decode().split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise FaultError(f"{uri}: not readable as UTF-8 ({error})") from error
    if lines[-1]:
        raise FaultError(f"{uri}, row {len(lines) - 1}: no line end")
    return lines[:-1]


def settings_of(vocabulary_directory: str) -> TokenizerSettings:
    """The settings that tokenizer.json states.

    Raises:
        FaultError: it is missing, or not that of a BERT tokenizer.
    """
    try:
        return stage_settings(vocabulary_directory)
    except InputError as error:
        raise FaultError(str(error)) from error


def table_of(directory: str, file: FileRecord, schema: pa.Schema) -> pa.Table:
    """The rows of an Arrow file, which must have this schema, including metadata."""
    where = f"{directory}/{file.name}"
    try:
        table = read_table(storage.join(directory, file.name))
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise FaultError(f"{where}: not a valid Arrow file ({error})") from error
    if not table.schema.equals(schema):
        raise FaultError(f"{where}: its schema is not the contract's")
    found, expected = table.schema.metadata or {}, schema.metadata or {}
    for key in sorted({*found, *expected}):
        if found.get(key) != expected.get(key):
            raise FaultError(
                f"{where}: its metadata {key.decode(errors='replace')} is {_text(found.get(key))}, by the manifests it "
                f"should be {_text(expected.get(key))}"
            )
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise FaultError(f"{where}, row {row}: no {name}")
        if pa.types.is_list(column.type) and column.combine_chunks().flatten().null_count:
            raise FaultError(f"{where}: an entry without a value in {name}")
    compare(where, "rows", file.rows, table.num_rows)
    return table


def _text(value: bytes | None) -> str:
    return "absent" if value is None else repr(value.decode(errors="replace"))
