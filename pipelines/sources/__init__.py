"""One reader per input format, all behind the same interface.

To add a format: write a module with a class that has `find` and `read`, enter it in `_FORMATS`, and name it in
`SourceConfig.format`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import NamedTuple, Protocol, cast

from pipelines.reading.unpacking import codec_of
from pipelines.settings.documents import DocumentsConfig, SourceConfig


@dataclass(frozen=True)
class Reject:
    """A record that became no document: a reason that is counted, and a detail for the person who looks it up."""

    source: str
    reason: str
    detail: str


@dataclass(frozen=True)
class InputFile:
    """One file to read, or the records of it that begin from `first_byte` on and before `end_byte`.

    `name` is its label in the `source` column: stable, and free of this machine's paths. A file that the inputs name
    but that cannot be read (its name is no UTF-8, a link leads nowhere) has a `problem`, which is its only record.
    """

    uri: str
    name: str
    size_bytes: int
    modified_ns: int
    first_byte: int = 0
    end_byte: int | None = None
    problem: Reject | None = None

    @property
    def range_bytes(self) -> int:
        return (self.size_bytes if self.end_byte is None else self.end_byte) - self.first_byte

    @property
    def begins_file(self) -> bool:
        """Does the range hold the file's first byte? Only such a range rejects the file as a whole."""
        return self.first_byte == 0 and self.end_byte != 0


@dataclass(frozen=True)
class RawDocument:
    """The text of one document as its source has it; a blank line separates paragraphs.

    Where `has_ready_sentences`, each paragraph is one sentence that the source has already split off.
    """

    source: str
    text: str
    has_ready_sentences: bool = False


class Source(Protocol):
    """A reader of one input format."""

    def find(self, config: SourceConfig, workspace: str | None = None) -> list[InputFile]:
        """The files that the recipe names, in a stable order; the run's workspace is left out where it lies among them.

        Raises:
            InputError: an input names nothing, or the files lack the field that the recipe names.
        """

    def read(self, file: InputFile, config: SourceConfig) -> Iterator[RawDocument | Reject]:
        """Read one file or range; a record that cannot be read is a `Reject`, never an exception.

        Ranges that cover a file without overlap give together what the whole file gives, wherever they are cut.
        """


class _Format(NamedTuple):
    module: str
    reader: str
    is_splittable: bool


# Readers are imported when first asked for: asking whether a stage is complete shall not load every parser.
_FORMATS = {
    "text": _Format("plain_text", "PlainText", is_splittable=True),
    "jsonl": _Format("json_lines", "JsonLines", is_splittable=True),
    "parquet": _Format("parquet", "Parquet", is_splittable=True),
    "arrow": _Format("arrow_ipc", "ArrowIpc", is_splittable=True),
    "wikiextractor": _Format("wikiextractor", "WikiExtractor", is_splittable=True),
    "mediawiki": _Format("mediawiki", "MediaWiki", is_splittable=True),
    "python-docstrings": _Format("python_docstrings", "PythonDocstrings", is_splittable=False),
}


def source_of(config: SourceConfig) -> Source:
    """The reader of a source's format."""
    entry = _FORMATS[config.format]
    return cast(Source, getattr(import_module(f"{__name__}.{entry.module}"), entry.reader)())


def is_splittable(file: InputFile, config: SourceConfig) -> bool:
    """Can ranges of the file be read without reading what lies before them?"""
    if config.format == "text" and config.document_separator == "file":
        return False
    # A bz2 file may hold many streams; of one that holds a single stream, the other ranges are empty.
    return _FORMATS[config.format].is_splittable and codec_of(file.name) in (None, "bz2")


def split_file(file: InputFile, config: SourceConfig, range_bytes: int) -> list[InputFile]:
    """Cut a file into equal ranges of `range_bytes` to twice as many; one that cannot be cut stays whole."""
    num_ranges = file.range_bytes // range_bytes
    if num_ranges < 2 or not is_splittable(file, config):
        return [file]
    cuts = [file.first_byte + file.range_bytes * index // num_ranges for index in range(num_ranges)]
    return [
        replace(file, first_byte=first, end_byte=end)
        for first, end in zip(cuts, [*cuts[1:], file.end_byte], strict=True)
    ]


def find_inputs(config: DocumentsConfig, workspace: str | None = None) -> list[list[InputFile]]:
    """The files of each source of a recipe's corpus, cut to `max_input_bytes` where that is set.

    Args:
        workspace: of the run; what lies in it is no input, also where it lies among the inputs.

    Raises:
        InputError: an input names nothing, or the files lack the field that the recipe names.
    """
    return [_first_bytes(source_of(source).find(source, workspace), source) for source in config.sources]


def _first_bytes(files: list[InputFile], config: SourceConfig) -> list[InputFile]:
    if config.max_input_bytes is None:
        return files
    kept, left_bytes = [], config.max_input_bytes
    for file in files:
        if left_bytes <= 0:
            break
        kept.append(replace(file, end_byte=left_bytes) if _is_cut(file, config, left_bytes) else file)
        left_bytes -= file.size_bytes
    return kept


def _is_cut(file: InputFile, config: SourceConfig, left_bytes: int) -> bool:
    return file.size_bytes > left_bytes and is_splittable(file, config)
