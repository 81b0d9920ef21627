"""The texts in files that models are evaluated on: every string of any of the usual formats, told from the name.

N-grams are compared, so a text may be cut too generously, never too finely: no document has an n-gram that crosses two
columns or rows of a table by chance.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown
from pipelines.inputs.file_patterns import find_files
from pipelines.reading.source import InputFile, Reject
from pipelines.reading.text_records import read_whole
from pipelines.reading.unpacking import UnreadableError, open_file
from pipelines.settings.documents import DocumentsConfig, SourceConfig

_PACKED = re.compile(r"\.(gz|bz2|zst)$")


def evaluation_files_of(config: DocumentsConfig) -> list[InputFile]:
    """The files of `[documents.decontamination]`, each once, sorted by label; empty without the section.

    Raises:
        InputError: a pattern names nothing, or a file that cannot be read.
    """
    if config.decontamination is None:
        return []
    try:
        files = find_files(config.decontamination.files)
    except InputError as error:
        text = str(error).replace("documents.sources: inputs", "documents.decontamination.files", 1)
        # Without `from None` the first cause would be shown instead of this line.
        raise InputError(text) from None
    for file in files:
        if file.problem is not None:
            raise InputError(f"documents.decontamination: {file.uri}: {file.problem.detail}; remove the file")
    # The files of GLUE's tasks all have the same names, so a label begins with the directory.
    labelled = [replace(file, name="/".join(unquote(file.uri).split("/")[-2:])) for file in files]
    return sorted(labelled, key=lambda file: (file.name, file.uri))


def evaluation_texts(file: InputFile) -> Iterator[str]:
    """The texts of one file.

    Raises:
        InputError: it is damaged, or not of the format that its name gives.
    """
    ending = _PACKED.sub("", file.name.lower()).rpartition(".")[2]
    reader = _READERS.get(ending, _of_lines)
    try:
        yield from reader(file)
    except (UnreadableError, ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise InputError(
            f"documents.decontamination: {shown(file.uri)}: cannot be read as its name says ({error}); rename or "
            "repair it, or remove it from files"
        ) from error


def _text(file: InputFile) -> str:
    whole = read_whole(file, SourceConfig(inputs=(file.uri,)))
    if isinstance(whole, Reject):
        raise UnreadableError(whole.reason, whole.detail)
    return whole.text


def _of_lines(file: InputFile) -> Iterator[str]:
    """The fields between tabs; and, for files of one token per line, the lines' first words up to a blank line."""
    lines = [line.strip() for line in _text(file).split("\n")]
    for line in lines:
        yield from line.split("\t")
    for is_text, block in groupby(lines, key=bool):
        if is_text:
            yield " ".join(line.split(maxsplit=1)[0] for line in block)


def _of_csv(file: InputFile) -> Iterator[str]:
    text = _text(file)
    csv.field_size_limit(max(len(text), 1))
    for row in csv.reader(text.splitlines(keepends=True)):
        yield from row


def _of_json(file: InputFile) -> Iterator[str]:
    yield from _strings(json.loads(_text(file)))


def _of_json_lines(file: InputFile) -> Iterator[str]:
    for line in _text(file).split("\n"):
        if line.strip():
            yield from _strings(json.loads(line))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _of_parquet(file: InputFile) -> Iterator[str]:
    import pyarrow.parquet as pq  # not for those who only look for files

    with open_file(file.uri) as stream:
        yield from _of_table(pq.read_table(stream))


def _of_arrow(file: InputFile) -> Iterator[str]:
    with open_file(file.uri) as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        yield from _of_table((pa.ipc.open_file if is_file else pa.ipc.open_stream)(stream).read_all())


def _of_table(table: pa.Table) -> Iterator[str]:
    for column in table.columns:
        for value in column.to_pylist():
            yield from _strings(value)


_READERS: dict[str, Callable[[InputFile], Iterator[str]]] = {
    "csv": _of_csv,
    "json": _of_json,
    "jsonl": _of_json_lines,
    "ndjson": _of_json_lines,
    "parquet": _of_parquet,
    "arrow": _of_arrow,
}
"""By the ending of a name; other files are lines of text, with tabs between columns."""
