"""Recipe sections of the run itself and of the three preprocessing jobs."""

from __future__ import annotations

import codecs
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.recipe import Section

MAX_SEQ_LENGTH_LIMIT = 65_535
"""Positions are stored as uint16."""

_ASCII_LINE = '<page title="{}">\r\n'
_ESCAPING_ENCODINGS = ("utf-7", "idna", "raw-unicode-escape")
_SETTINGS_OF_FORMATS = {
    "document_separator": ("text",),
    "text_field": ("jsonl", "parquet", "arrow"),
    "encoding": ("text", "jsonl", "wikiextractor", "mediawiki"),
}

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class SourceConfig(Section):
    """`[[documents.sources]]`: texts of one kind."""

    format: Literal["text", "jsonl", "parquet", "arrow", "wikiextractor", "mediawiki", "python-docstrings"] = "text"
    inputs: tuple[str, ...] = Field(min_length=1)
    """Paths or globs. For `python-docstrings`: `stdlib` and names of installed distributions."""
    document_separator: Literal["file", "blank-line", "google-bert"] = "file"
    """For `text`: is a document a whole file, or what stands between blank lines? `google-bert` is the latter with one
    ready sentence a line, as create_pretraining_data.py reads it."""
    text_field: str = Field("text", min_length=1)
    """For `jsonl`: the text's place, with dots into nested objects; for `parquet` and `arrow`: the column."""
    encoding: str = "utf-8"
    """Encoding of text without a byte order mark, by Python's name for it; a mark in the file goes before this."""
    max_record_bytes: int = Field(256 << 20, ge=1 << 10)
    """A longer record (a whole file where a document is a file) is rejected: it would have to fit in memory."""
    language: str = Field("en", min_length=2)
    """Language code for sentence splitting."""
    max_input_bytes: int | None = Field(None, ge=1)
    """Read the inputs in sorted order up to about this many bytes; for trials."""

    @field_validator("encoding")
    @classmethod
    def _encoding_is_readable(cls, encoding: str) -> str:
        """Replace the name by its canonical form.

        Raises:
            ValueError: Python knows no such text encoding, or its line ends are not ASCII's.
        """
        try:
            name = codecs.lookup(encoding).name
            line = _ASCII_LINE.encode(name)
        except LookupError as error:
            raise ValueError(
                "not a text encoding that Python knows, such as utf-8, latin-1, cp1251, gb18030"
            ) from error
        except UnicodeError:
            line = b""
        is_wide = name.startswith(("utf-16", "utf-32"))
        if name in _ESCAPING_ENCODINGS or (line != _ASCII_LINE.encode() and not is_wide and name != "utf-8-sig"):
            raise ValueError("lines and markup are found by their ASCII bytes, which this encoding writes differently")
        return "utf-8" if name == "utf-8-sig" else name

    @model_validator(mode="after")
    def _settings_fit_the_format(self) -> SourceConfig:
        for setting, formats in _SETTINGS_OF_FORMATS.items():
            # A manifest names every setting, so only one that was changed tells a mistake.
            is_changed = getattr(self, setting) != type(self).model_fields[setting].default
            if is_changed and self.format not in formats:
                known = ", ".join(formats)
                raise ValueError(f"{setting} has no meaning for format = {self.format!r}, only for {known}")
        return self


class DocumentsConfig(Section):
    """`[documents]`: which texts are read, how they become documents, and into how many shards."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    min_characters: int = Field(20, ge=1)
    """Documents with less text are rejected."""
    max_characters: int | None = Field(None, ge=1)
    """Longer texts become several documents, split between paragraphs; None never splits."""
    num_shards: int = Field(16, ge=1, le=99_999)
    heldout_share: Probability = 0.01
    """Share of documents, by hash, that is kept for evaluation only."""


class VocabularyConfig(Section):
    """`[vocabulary]`: the WordPiece vocabulary and the casing of all that follows."""

    size: int = Field(30_522, ge=100, le=1 << 24)
    lowercase: bool = True
    strip_accents: bool | None = None
    """None does as BERT does: strip when lower-casing."""
    min_count: int = Field(2, ge=1)
    """Pairs rarer than this are never merged."""
    alphabet_size: int = Field(1000, ge=1)
    """The most frequent characters that get an entry; words with others become [UNK]."""


class ExampleLengthConfig(Section):
    """`[[examples.lengths]]`: one set of examples, cut to a maximum length."""

    max_seq_length: int = Field(ge=8, le=MAX_SEQ_LENGTH_LIMIT)
    max_predictions_per_seq: int = Field(ge=1)

    @model_validator(mode="after")
    def _predictions_fit(self) -> ExampleLengthConfig:
        if self.max_predictions_per_seq > self.max_seq_length - 3:
            most = self.max_seq_length - 3
            raise ValueError(
                f"max_predictions_per_seq = {self.max_predictions_per_seq} exceeds the {most} tokens of a pair"
            )
        return self


class ExamplesConfig(Section):
    """`[examples]`: next-sentence pairs with static masks, as create_pretraining_data.py makes them."""

    seed: int = Field(12_345, ge=0, lt=1 << 63)
    passes: int = Field(5, ge=1)
    """How often each document is cut and masked anew (`dupe_factor` in the released code)."""
    lengths: tuple[ExampleLengthConfig, ...] = (
        ExampleLengthConfig(max_seq_length=128, max_predictions_per_seq=20),
        ExampleLengthConfig(max_seq_length=512, max_predictions_per_seq=80),
    )
    masked_lm_prob: Annotated[float, Field(gt=0.0, le=0.5)] = 0.15
    short_seq_prob: Probability = 0.1
    masking: Literal["static", "whole-word"] = "static"

    @model_validator(mode="after")
    def _lengths_differ(self) -> ExamplesConfig:
        lengths = [length.max_seq_length for length in self.lengths]
        if not lengths or len(set(lengths)) < len(lengths):
            raise ValueError(f"lengths = {lengths}: give at least one, each max_seq_length once")
        return self
