"""The table of input formats. A new format is one module of `pipelines.sources` and one row here."""

from __future__ import annotations

from typing import NamedTuple


class Format(NamedTuple):
    """One input format; its reader is imported only when it is used."""

    reader: str
    """Module and class below `pipelines.sources`."""
    settings: tuple[str, ...] = ()
    """Settings of `[[documents.sources]]` that apply to some formats only, and to this one."""
    is_splittable: bool = True
    """Whether ranges of a file can be read independently."""
    is_plain: bool = False
    """Whether a file has about as many bytes as its text."""
    seconds_per_megabyte: float = 0.0
    """CPU time of reading, if it exceeds that of all later steps; measured (flows/COSTS.md)."""


FORMATS = {
    "text": Format("plain_text:PlainText", ("document_separator", "encoding"), is_plain=True),
    "jsonl": Format("json_lines:JsonLines", ("text_field", "encoding"), is_plain=True),
    "parquet": Format("parquet:Parquet", ("text_field",)),
    "arrow": Format("arrow_ipc:ArrowIpc", ("text_field",)),
    "hf-dataset": Format("hf_dataset:HfDataset", ("text_field",), is_splittable=False),
    "csv": Format("delimited:Csv", ("text_field", "encoding", "quoting"), is_plain=True),
    "tsv": Format("delimited:Tsv", ("text_field", "encoding", "quoting"), is_plain=True),
    "warc": Format("warc:Warc", is_splittable=False, seconds_per_megabyte=1 / 4.2),
    "wikiextractor": Format("wikiextractor:WikiExtractor", ("encoding",), seconds_per_megabyte=1 / 57),
    "mediawiki": Format("mediawiki:MediaWiki", ("encoding",), seconds_per_megabyte=1 / 4.5),
    "python-docstrings": Format(
        "python_docstrings:PythonDocstrings", is_splittable=False, seconds_per_megabyte=1 / 4.8
    ),
}


def formats_with(setting: str) -> tuple[str, ...]:
    """The formats that a setting applies to; empty if it applies to all."""
    return tuple(name for name, entry in FORMATS.items() if setting in entry.settings)


SETTINGS_OF_SOME_FORMATS = tuple(sorted({setting for entry in FORMATS.values() for setting in entry.settings}))
