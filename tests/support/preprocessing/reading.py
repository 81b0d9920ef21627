"""Read a source as a job does, for the tests of readers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

from pipelines.reading.source import InputFile, RawDocument, Reject
from pipelines.settings.documents import DocumentsConfig, SourceConfig
from pipelines.sources.formats import find_inputs, source_of

Item = RawDocument | Reject


def files_of(source: SourceConfig) -> list[InputFile]:
    return find_inputs(DocumentsConfig(sources=(source,)))[0]


def read_all(source: SourceConfig) -> list[Item]:
    return [item for file in files_of(source) for item in source_of(source).read(file, source)]


def read(path: Any, **settings: Any) -> list[Item]:
    return read_all(SourceConfig(inputs=(str(path),), **settings))


def read_in_ranges(file: InputFile, source: SourceConfig, cuts: Iterable[int]) -> list[Item]:
    """Items of the ranges between the cuts, in order."""
    bounds = [0, *sorted(cuts), file.size_bytes]
    return [
        item
        for first, end in pairwise(bounds)
        for item in source_of(source).read(replace(file, first_byte=first, end_byte=end), source)
    ]


def texts_of(items: Iterable[Item]) -> list[str]:
    return [item.text for item in items if isinstance(item, RawDocument)]


def reasons_of(items: Iterable[Item]) -> list[str]:
    return [item.reason for item in items if isinstance(item, Reject)]
