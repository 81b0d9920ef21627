"""Recipe section `[documents]`: sources, cleaning, near-duplicates."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from pipelines.contract.bounds import NAME_PATTERN, Bounded, Count, Probability, Text, UserPath, Weight
from pipelines.contract.recipe import ADDED, OPERATIONAL, Recipe, Section
from pipelines.settings.decontamination import DecontaminationConfig, with_task_files
from pipelines.settings.formats import FORMATS, SETTINGS_OF_SOME_FORMATS, formats_with
from pipelines.settings.languages import LANGUAGES
from pipelines.settings.quality import QualityConfig
from pipelines.settings.sentence_languages import SENTENCE_LANGUAGES, nearest_languages

_ASCII_LINE = '<page title="{}">\r\n'
_ESCAPING_ENCODINGS = ("utf-7", "idna", "raw-unicode-escape")

_IN_MEMORY = "each record is held in memory"
_SHINGLES = "a few words are enough to distinguish documents"
_HASHES = "fewer hash functions estimate poorly, more only cost time"
_SHARE_HELD_OUT = "held-out documents are not trained on, so some must remain"
_SIMILARITY = "at 0 all documents are alike, and equal ones are removed in any case"

if TYPE_CHECKING:
    FormatName: TypeAlias = str
else:
    FormatName = Literal[tuple(FORMATS)]


class SourceConfig(Section):
    """`[[documents.sources]]`: texts of one kind."""

    format: FormatName = "text"
    inputs: tuple[UserPath, ...] = Field(min_length=1)
    """Paths or globs. For `python-docstrings`: `stdlib` and names of installed distributions."""
    document_separator: Literal["file", "blank-line", "google-bert"] = "file"
    """For `text`: whether a document is a complete file or a block between blank lines; `google-bert` is the latter
    with one ready sentence per line, as create_pretraining_data.py reads it."""
    text_field: Text = "text"
    """For `jsonl`: the path of the text, with dots into nested objects; for tables: the column."""
    quoting: Literal["minimal", "none"] = Field(default="minimal", json_schema_extra=ADDED)
    """For `csv` and `tsv`: fields that begin with a quotation mark end with one and may hold line ends (RFC 4180), or
    a quotation mark is a plain character, as in GLUE's files. Names and meaning are those of Python's csv module."""
    encoding: Text = "utf-8"
    """Encoding of text without a byte order mark, by Python's name for it; a mark in the file overrides this."""
    max_record_bytes: Annotated[int, Bounded(1 << 10, 1 << 36, _IN_MEMORY)] = 256 << 20
    """A longer record (a complete file if each file is a document) is rejected: it would have to fit in memory."""
    language: str = Field(default="en", min_length=2)
    """Language code for sentence splitting, such as `en` or `de` (`pipelines.settings.sentence_languages`)."""
    max_input_bytes: (
        Annotated[int, Bounded(1, 1 << 60, "it bounds a trial's text; leave it out to read all")] | None
    ) = None
    """Read the inputs in sorted order up to about this many bytes; for trials."""
    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=64)] | None = Field(
        default=None, json_schema_extra=ADDED
    )
    """Recorded with each document, so that `weight` and `examples.sets` can select by it; for all sources or none."""
    weight: Weight | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Share of the tokens that examples take from this source, relative to the others; None takes texts as they are.

    Only the examples depend on it, so a change does not read the texts again.
    """

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

    @field_validator("language")
    @classmethod
    def _language_is_known(cls, language: str) -> str:
        """Refuse what the sentence splitter would silently treat as English.

        Raises:
            ValueError: the sentence splitter knows no such language.
        """
        if language in SENTENCE_LANGUAGES:
            return language
        nearest = nearest_languages(language)
        hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else "use its ISO 639 code, such as 'de'"
        raise ValueError(f"unknown language for sentence splitting; {hint}")

    @model_validator(mode="after")
    def _settings_fit_the_format(self) -> SourceConfig:
        for setting in SETTINGS_OF_SOME_FORMATS:
            formats = formats_with(setting)
            # Manifests record every setting, so reject a value only if it differs from the default.
            is_changed = getattr(self, setting) != type(self).model_fields[setting].default
            if is_changed and self.format not in formats:
                known = ", ".join(formats)
                raise ValueError(f"{setting} has no meaning for format = {self.format!r}, only for {known}")
        return self


class CleaningConfig(Section):
    """`[documents.cleaning]`: repairs to a text before it is split into sentences."""

    unicode_normalization: Literal["none", "NFC", "NFKC"] = "NFC"
    fix_mojibake: bool = False
    """Let ftfy repair text that was decoded with the wrong encoding; twenty times slower than all other cleaning."""
    repeated_lines: Literal["keep", "drop"] = "keep"
    """`drop` removes every line that equals an earlier one of the same document: menus, headers, footers."""


class NearDuplicatesConfig(Section):
    """`[documents.near_duplicates]`: MinHash over word n-grams; one of several near-duplicates is kept."""

    min_similarity: Annotated[float, Bounded(0.0, 1.0, _SIMILARITY, above_low=True, below_high=True)] = 0.8
    """Jaccard similarity of two documents' n-grams that makes them near-duplicates (Lee et al., 2022, section 4)."""
    words_per_shingle: Annotated[int, Bounded(1, 100, _SHINGLES)] = 5
    num_permutations: Annotated[int, Bounded(16, 4_096, _HASHES)] = 128


class DocumentsConfig(Section):
    """`[documents]`: which texts are read, how they become documents, and into how many shards."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    cleaning: CleaningConfig = CleaningConfig()
    languages: tuple[Text, ...] = ()
    """Keep only documents in these languages, by ISO 639 code, as identified by py3langid; empty keeps all."""
    quality: QualityConfig | None = Field(default=None, json_schema_extra=ADDED)
    """None drops nothing."""
    decontamination: DecontaminationConfig | None = Field(default=None, json_schema_extra=ADDED)
    """None looks for no evaluation data."""
    near_duplicates: NearDuplicatesConfig | None = None
    """None removes exact duplicates only."""
    min_sentences: Count = 1
    """Documents of fewer sentences are rejected."""
    min_characters: Count = 20
    """Documents with less text are rejected."""
    max_characters: Count | None = None
    """Longer texts become several documents, split between paragraphs; None never splits."""
    num_shards: Annotated[int, Bounded(1, 99_999, "file names have five digits for it")] = 16
    heldout_share: Annotated[float, Bounded(0.0, 0.9, _SHARE_HELD_OUT)] = 0.01
    """Share of documents, by hash, that is kept for evaluation only."""
    warn_rejected_share: Probability = Field(0.1, json_schema_extra=OPERATIONAL)
    """Warn if a larger share of the texts read is rejected for a fault; duplicates and redirects are not faults."""

    @classmethod
    def completed(cls, table: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
        return with_task_files(table, recipe)

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

    @model_validator(mode="after")
    def _sources_are_named(self) -> DocumentsConfig:
        names = [source.name for source in self.sources]
        weights = [source.weight for source in self.sources]
        if any(names) or any(weights):
            for index, source in enumerate(self.sources):
                if source.name is None:
                    raise ValueError(f"sources.{index} has no name, but another has a name or weight; name each source")
                if names.count(source.name) > 1:
                    raise ValueError(f"two sources have name = {source.name!r}; give each its own")
        if any(weights) and None in weights:
            index = weights.index(None)
            raise ValueError(f"sources.{index} ({names[index]!r}) has no weight, but another has; weight all or none")
        return self

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, in order; empty if they have none."""
        return tuple(source.name for source in self.sources if source.name is not None)

    @model_validator(mode="after")
    def _some_document_remains(self) -> DocumentsConfig:
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters = {self.max_characters} splits all texts into documents below min_characters = "
                f"{self.min_characters}, which are rejected; raise the former or lower the latter"
            )
        return self
