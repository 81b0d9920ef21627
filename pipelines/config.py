"""Recipe sections of the run itself and of the three preprocessing jobs."""

from __future__ import annotations

import codecs
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.languages import LANGUAGES
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


class CleaningConfig(Section):
    """`[documents.cleaning]`: what is mended in a text before it is cut into sentences."""

    unicode_normalization: Literal["none", "NFC", "NFKC"] = "NFC"
    fix_mojibake: bool = False
    """Let ftfy mend text that was decoded with the wrong encoding; about twenty times slower than all the rest."""
    repeated_lines: Literal["keep", "drop"] = "keep"
    """`drop` leaves out every line that an earlier line of the same document equals: menus, headers, footers."""


class NearDuplicatesConfig(Section):
    """`[documents.near_duplicates]`: MinHash over word n-grams; of documents that are alike, one is kept."""

    min_similarity: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.8
    """Jaccard similarity of two documents' n-grams from which they count as alike (Lee et al., 2022, section 4)."""
    words_per_shingle: int = Field(5, ge=1)
    num_permutations: int = Field(128, ge=16)


class DocumentsConfig(Section):
    """`[documents]`: which texts are read, how they become documents, and into how many shards."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    cleaning: CleaningConfig = CleaningConfig()
    languages: tuple[str, ...] = ()
    """Keep documents in these languages only, by ISO 639 code, as py3langid tells them; empty keeps all."""
    near_duplicates: NearDuplicatesConfig | None = None
    """None removes exact duplicates only."""
    min_sentences: int = Field(1, ge=1)
    """Documents of fewer sentences are rejected."""
    min_characters: int = Field(20, ge=1)
    """Documents with less text are rejected."""
    max_characters: int | None = Field(None, ge=1)
    """Longer texts become several documents, split between paragraphs; None never splits."""
    num_shards: int = Field(16, ge=1, le=99_999)
    heldout_share: Probability = 0.01
    """Share of documents, by hash, that is kept for evaluation only."""

    @field_validator("languages")
    @classmethod
    def _languages_are_known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        """Put the codes in order.

        Raises:
            ValueError: the language identifier knows no such code.
        """
        unknown = sorted({*languages} - LANGUAGES)
        if unknown:
            raise ValueError(f"no such language code: {', '.join(unknown)}; known are {', '.join(sorted(LANGUAGES))}")
        return tuple(sorted({*languages}))


class VocabularyConfig(Section):
    """`[vocabulary]`: the WordPiece vocabulary and the casing of all that follows."""

    size: int = Field(30_522, ge=100, le=1 << 24)
    layout: Literal["compact", "bert"] = "compact"
    """Where the special tokens stand: `compact` at 0 to 4; `bert` as in the released uncased vocabulary, with [PAD] at
    0, [UNK] [CLS] [SEP] [MASK] at 100 to 103, and 99 + 895 `[unused]` entries around them, all counted in `size`."""
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
    """`[examples]`: next-sentence pairs with masked tokens, as create_pretraining_data.py makes them."""

    seed: int = Field(12_345, ge=0, lt=1 << 63)
    passes: int = Field(5, ge=1)
    """How often each document is cut and masked anew (`dupe_factor` in the released code)."""
    lengths: tuple[ExampleLengthConfig, ...] = (
        ExampleLengthConfig(max_seq_length=128, max_predictions_per_seq=20),
        ExampleLengthConfig(max_seq_length=512, max_predictions_per_seq=80),
    )
    masked_lm_prob: Annotated[float, Field(gt=0.0, le=0.5)] = 0.15
    short_seq_prob: Probability = 0.1
    """Share of documents, drawn anew in each pass, that are cut to a random shorter length; for pairs only."""
    masking: Literal["static", "dynamic", "whole_word"] = "static"
    """`dynamic` leaves the tokens as they are and training masks them anew each time (Liu et al., 2019, section 4.1);
    `whole_word` masks all pieces of a word together, as the released code's --do_whole_word_mask."""
    next_sentence: bool = True
    """False packs full sentences up to the maximum length, over the borders of documents, without a second segment
    and without the next-sentence task (Liu et al., 2019, section 4.2, "full-sentences")."""
    num_length_bins: int = Field(1, ge=1, le=512)
    """Write each maximum length in so many sets of files, by equal steps of row length; for readers that pad."""

    @model_validator(mode="after")
    def _lengths_differ(self) -> ExamplesConfig:
        lengths = [length.max_seq_length for length in self.lengths]
        if not lengths or len(set(lengths)) < len(lengths):
            raise ValueError(f"lengths = {lengths}: give at least one, each max_seq_length once")
        if self.num_length_bins > min(lengths):
            raise ValueError(f"num_length_bins = {self.num_length_bins} is more than max_seq_length = {min(lengths)}")
        return self

    @model_validator(mode="after")
    def _settings_fit_the_task(self) -> ExamplesConfig:
        # A manifest names every setting, so only one that was changed tells a mistake.
        default = type(self).model_fields["short_seq_prob"].default
        if not self.next_sentence and self.short_seq_prob != default:
            raise ValueError(
                f"short_seq_prob = {self.short_seq_prob} has no meaning for next_sentence = false, which fills every "
                "row with full sentences; leave it out"
            )
        return self
