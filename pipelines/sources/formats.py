"""The reader of each input format, and the files that a recipe names."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import cast

from pipelines.reading.source import InputFile, Source
from pipelines.reading.unpacking import codec_of
from pipelines.settings.documents import DocumentsConfig, SourceConfig
from pipelines.settings.formats import FORMATS, formats_with


def source_of(config: SourceConfig) -> Source:
    """The reader of a source's format."""
    module, _, reader = FORMATS[config.format].reader.partition(":")
    return cast(Source, getattr(import_module(f"pipelines.sources.{module}"), reader)())


def is_splittable(file: InputFile, config: SourceConfig) -> bool:
    """Whether ranges of the file can be read without the bytes before them."""
    if config.format == "text" and config.document_separator == "file":
        return False
    if config.format in formats_with("quoting") and config.quoting != "none":
        # Only the text before a line decides whether it begins a row or continues a quoted field.
        return False
    # A bz2 file may hold many streams; of one that holds a single stream, the other ranges are empty.
    return FORMATS[config.format].is_splittable and codec_of(file.name) in (None, "bz2")


def split_file(file: InputFile, config: SourceConfig, range_bytes: int) -> list[InputFile]:
    """Cut a file into equal ranges of `range_bytes` to twice as many; one that cannot be cut is returned as it is."""
    num_ranges = file.range_bytes // range_bytes
    if num_ranges < 2 or not is_splittable(file, config):
        return [file]
    cuts = [file.first_byte + file.range_bytes * index // num_ranges for index in range(num_ranges)]
    return [
        replace(file, first_byte=first, end_byte=end)
        for first, end in zip(cuts, [*cuts[1:], file.end_byte], strict=True)
    ]


def find_inputs(config: DocumentsConfig, workspace: str | None = None) -> list[list[InputFile]]:
    """The files of each source of a recipe's corpus, cut to `max_input_bytes` if that is set.

    Args:
        workspace: of the run; files in it are not inputs, even if it is among the inputs.

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
