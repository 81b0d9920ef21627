"""What a document is, and how the files of a corpus become documents: parts, cleaning, sentences, limits, shards.

Without Beam: `parts`, `near_duplicates` and `shards` contain the transforms around these functions.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from pipelines.contract.schemas import DOCUMENT_ID_BYTES, Split
from pipelines.documents.cleaning import SENTENCES_CUT, clean_text
from pipelines.documents.languages import LanguageIdentifier
from pipelines.documents.sentences import paragraphs_of, pieces_of, sentences_of
from pipelines.filtering.decontamination import CONTAMINATED, EvaluationGrams
from pipelines.filtering.quality import LINES_DROPPED, QualityFilter
from pipelines.inputs.stability import require_readable, require_unchanged
from pipelines.reading.source import InputFile, Reject
from pipelines.reading.unpacking import unpacked_bytes
from pipelines.settings.documents import DocumentsConfig, SourceConfig
from pipelines.sources.formats import find_inputs, source_of, split_file

# Finished parts are identified by number: when this changes, raise the stage's version.
PART_BYTES = 4 << 20
_SENTENCES_AT_ONCE = 10_000


class Document(NamedTuple):
    doc_id: bytes
    source: str
    sentences: list[str]


class CorpusPart(NamedTuple):
    """Consecutive input files of one source, or ranges of one file, which one worker reads at a time."""

    number: int
    source: SourceConfig
    files: tuple[InputFile, ...]

    def text_bytes(self) -> int:
        """Estimate of the size of its texts."""
        return sum(unpacked_bytes(file.name, file.range_bytes) for file in self.files)


class PartSummary(NamedTuple):
    """Result of one part: its number, the texts read, rejects by reason, what cleaning did, some rejects, and the
    documents that share text with evaluation data, by file."""

    number: int
    documents_read: int
    rejected: dict[str, int]
    cleaned: dict[str, int]
    first_rejects: dict[str, list[list[str]]]
    contaminated: dict[str, int] | None = None


def document_id(sentences: list[str]) -> bytes:
    """Hash of a document's text, which also decides its split and its shard."""
    digest = hashlib.blake2b("\n".join(sentences[:_SENTENCES_AT_ONCE]).encode(), digest_size=DOCUMENT_ID_BYTES)
    for start in range(_SENTENCES_AT_ONCE, len(sentences), _SENTENCES_AT_ONCE):
        digest.update(("\n" + "\n".join(sentences[start : start + _SENTENCES_AT_ONCE])).encode())
    return digest.digest()


def shard_number(doc_id: bytes, heldout_share: float, num_shards: int) -> tuple[Split, int]:
    """The split and the shard that a document belongs to, by its hash alone."""
    is_heldout = int.from_bytes(doc_id[:4], "little") < heldout_share * 2**32
    count = num_heldout_shards(num_shards, heldout_share) if is_heldout else num_shards
    return "heldout" if is_heldout else "train", int.from_bytes(doc_id[4:8], "little") % count


def num_heldout_shards(num_shards: int, heldout_share: float) -> int:
    """The number of held-out shards that makes them about as large as training shards."""
    return max(1, round(num_shards * heldout_share)) if heldout_share > 0 else 0


def shards_of(config: DocumentsConfig) -> list[tuple[Split, int, int]]:
    """All shards as (split, index, count)."""
    counts: dict[Split, int] = {
        "train": config.num_shards,
        "heldout": num_heldout_shards(config.num_shards, config.heldout_share),
    }
    return [(split, index, count) for split, count in counts.items() for index in range(count)]


def plan_parts(config: DocumentsConfig, workspace: str | None = None) -> list[CorpusPart]:
    """Group the files of each source, in order, into parts of about four megabytes; larger files become ranges.

    Raises:
        InputError: an input names nothing, a file may not be read, or the files lack the field that the recipe names.
    """
    parts: list[CorpusPart] = []
    for source, files in zip(config.sources, find_inputs(config, workspace), strict=True):
        require_readable(files)
        ranges = [piece for file in files for piece in split_file(file, source, PART_BYTES)]
        group: list[InputFile] = []
        size_bytes = 0
        for file in ranges:
            group.append(file)
            size_bytes += file.range_bytes
            if size_bytes >= PART_BYTES or file is ranges[-1]:
                parts.append(CorpusPart(len(parts), source, tuple(group)))
                group, size_bytes = [], 0
    return parts


class DocumentReader:
    """Reads files into documents of cleaned sentences, and counts what cleaning did to their texts."""

    def __init__(self, config: DocumentsConfig, evaluation_grams: EvaluationGrams | None = None):
        self._config = config
        self._evaluation_grams = evaluation_grams
        self._identifier = LanguageIdentifier() if config.languages else None
        self._quality = QualityFilter(config.quality) if config.quality is not None else None
        self.cleaned: Counter[str] = Counter()
        self.contaminated: Counter[str] = Counter()

    def read(self, file: InputFile, source: SourceConfig) -> Iterator[Document | Reject]:
        """Documents and rejects of one file or range.

        Raises:
            StorageFaultError: the file cannot be read.
            InputError: the file changed after the job was planned.
        """
        if file.problem is not None:
            yield file.problem
            return
        for raw in source_of(source).read(file, source):
            if isinstance(raw, Reject):
                yield raw
                continue
            name, has_ready_sentences = raw.source, raw.has_ready_sentences
            text, counts = clean_text(raw.text, self._config.cleaning)
            if counts:
                self.cleaned.update(counts)
            if self._quality is not None:
                text, num_dropped, reason, detail = self._quality.judge(text)
                self.cleaned[LINES_DROPPED] += num_dropped
                if reason is not None:
                    yield Reject(name, reason, detail)
                    continue
            whole = paragraphs_of(text)
            # A text may be as long as max_record_bytes: free it before the next copy is made.
            del raw, text
            for paragraphs in pieces_of(whole, self._config.max_characters):
                sentences = paragraphs if has_ready_sentences else self._split(paragraphs, source.language)
                yield self._reject_of(name, sentences) or Document(document_id(sentences), name, sentences)
        require_unchanged(file)

    def _split(self, paragraphs: list[str], language: str) -> list[str]:
        sentences, num_cut = sentences_of(paragraphs, language)
        if num_cut:
            self.cleaned[SENTENCES_CUT] += num_cut
        return sentences

    def _reject_of(self, source: str, sentences: list[str]) -> Reject | None:
        config = self._config
        num_characters = sum(map(len, sentences))
        if num_characters < config.min_characters:
            return Reject(source, "too-short", f"{num_characters} characters, fewer than {config.min_characters}")
        if len(sentences) < config.min_sentences:
            return Reject(
                source, "too-few-sentences", f"sentences: {len(sentences)}, fewer than {config.min_sentences}"
            )
        if self._identifier is not None:
            language = self._identifier.identify(" ".join(sentences))
            if language.code not in config.languages:
                return Reject(source, "language", f"{language.code} with probability {language.probability:.2f}")
        hit = self._evaluation_grams.find(sentences) if self._evaluation_grams is not None else None
        if hit is not None:
            self.contaminated[hit.file] += 1
            return Reject(source, CONTAMINATED, f"has the same words as {hit.file}: {hit.words}")
        return None
