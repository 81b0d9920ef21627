"""Transforms of job 1: parts of a corpus become documents, documents become shards.

Texts move through files, not through the runner: each part of the input becomes one file whose record batches are the
shards' portions, and each shard then collects its batch from every part. The runner shuffles file names, so memory is
bounded by a part and a shard on any runner.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics

from pipelines import __version__, storage
from pipelines.arrow_files import DOCUMENTS_PER_BATCH, documents_table, write_table
from pipelines.config import DocumentsConfig, SourceConfig
from pipelines.contract import (
    DOCUMENT_ID_BYTES,
    FileRecord,
    Manifest,
    Split,
    StageKey,
    record_of,
    shard_name,
    write_manifest,
)
from pipelines.runners import limit_worker_threads
from pipelines.sentences import paragraphs_of, pieces_of, sentences_of
from pipelines.sources import InputFile, Reject, find_inputs, source_of, split_file
from pipelines.stages import DOCUMENTS

PART_BYTES = 4 << 20
ROUND_CHARACTERS = 32 << 20
PARTS_DIRECTORY = "parts"
REJECTS_NAME = "rejected.jsonl.gz"

_PART_SCHEMA = pa.schema(
    [
        ("doc_id", pa.binary(DOCUMENT_ID_BYTES)),
        ("source", pa.string()),
        ("sentences", pa.list_(pa.field("item", pa.string(), nullable=False))),
    ]
)


class Document(NamedTuple):
    doc_id: bytes
    source: str
    sentences: list[str]


class CorpusPart(NamedTuple):
    """A run of input files of one source, or of ranges of one, which one worker reads at a time."""

    number: int
    source: SourceConfig
    files: tuple[InputFile, ...]


class PartSummary(NamedTuple):
    """What became of one part: its number, the texts read, and rejects by reason."""

    number: int
    documents_read: int
    rejected: dict[str, int]


class ShardSummary(NamedTuple):
    file: FileRecord
    rejects: list[str]


def document_id(sentences: list[str]) -> bytes:
    """Hash of a document's text, which also decides its split and its shard."""
    return hashlib.blake2b("\n".join(sentences).encode(), digest_size=DOCUMENT_ID_BYTES).digest()


def shard_number(doc_id: bytes, heldout_share: float, num_shards: int) -> tuple[Split, int]:
    """The split and the shard that a document belongs to, by its hash alone."""
    is_heldout = int.from_bytes(doc_id[:4], "little") < heldout_share * 2**32
    count = num_heldout_shards(num_shards, heldout_share) if is_heldout else num_shards
    return "heldout" if is_heldout else "train", int.from_bytes(doc_id[4:8], "little") % count


def num_heldout_shards(num_shards: int, heldout_share: float) -> int:
    """So many that a held-out shard is about as large as a training shard."""
    return max(1, round(num_shards * heldout_share)) if heldout_share > 0 else 0


def shards_of(config: DocumentsConfig) -> list[tuple[Split, int, int]]:
    """All shards as (split, index, count)."""
    counts: dict[Split, int] = {
        "train": config.num_shards,
        "heldout": num_heldout_shards(config.num_shards, config.heldout_share),
    }
    return [(split, index, count) for split, count in counts.items() for index in range(count)]


def plan_parts(config: DocumentsConfig) -> list[CorpusPart]:
    """Group the files of each source, in order, into parts of about four megabytes; larger files become ranges."""
    parts: list[CorpusPart] = []
    for source, files in zip(config.sources, find_inputs(config), strict=True):
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


def documents_of(file: InputFile, source: SourceConfig, config: DocumentsConfig) -> Iterator[Document | Reject]:
    """Read one file or range into documents of cleaned sentences, and rejects."""
    for raw in source_of(source).read(file, source):
        if isinstance(raw, Reject):
            yield raw
            continue
        for paragraphs in pieces_of(paragraphs_of(raw.text), config.max_characters):
            sentences = paragraphs if raw.has_ready_sentences else sentences_of(paragraphs, source.language)
            num_characters = sum(map(len, sentences))
            if num_characters < config.min_characters:
                yield Reject(
                    raw.source, "too-short", f"{num_characters} characters, fewer than {config.min_characters}"
                )
                continue
            yield Document(document_id(sentences), raw.source, sentences)


class ReadPart(beam.DoFn):
    """`CorpusPart` -> `PartSummary`: read a part's files and write its documents, one record batch a shard.

    A part that unpacks to much more than its size is written in rounds of such batches, so memory stays bounded.
    """

    def __init__(self, directory: str, config: DocumentsConfig):
        self._directory = directory
        self._config = config
        self._shards = shards_of(config)

    def setup(self) -> None:
        limit_worker_threads()

    def process(self, part: CorpusPart) -> Iterator[PartSummary]:
        portions: dict[tuple[Split, int], list[Document]] = {(split, index): [] for split, index, _ in self._shards}
        rejects: list[Reject] = []
        documents_read = held_characters = 0
        base = storage.join(self._directory, PARTS_DIRECTORY, f"{part.number:06d}")
        items = (item for file in part.files for item in documents_of(file, part.source, self._config))
        with storage.atomic_output(base + ".arrow") as stream, pa.ipc.new_file(stream, _PART_SCHEMA) as writer:
            for item in items:
                documents_read += 1
                if isinstance(item, Reject):
                    rejects.append(item)
                    Metrics.counter(DOCUMENTS, f"rejected-{item.reason}").inc()
                    continue
                portions[shard_number(item.doc_id, self._config.heldout_share, self._config.num_shards)].append(item)
                held_characters += sum(map(len, item.sentences))
                if held_characters >= ROUND_CHARACTERS:
                    self._write_round(writer, portions)
                    held_characters = 0
            self._write_round(writer, portions)
        Metrics.counter(DOCUMENTS, "read").inc(documents_read)
        storage.write_bytes(base + ".rejected.jsonl.gz", _packed_rejects(rejects))
        yield PartSummary(part.number, documents_read, dict(Counter(reject.reason for reject in rejects)))

    def _write_round(self, writer: pa.RecordBatchFileWriter, portions: dict[tuple[Split, int], list[Document]]) -> None:
        for split, index, _ in self._shards:
            writer.write_batch(_part_batch(portions[split, index]))
            portions[split, index].clear()


class CollectShard(beam.DoFn):
    """Shard number -> `ShardSummary`: collect a shard's documents from all parts, drop duplicates, write the file."""

    def __init__(self, directory: str, config: DocumentsConfig):
        self._directory = directory
        self._shards = shards_of(config)

    def setup(self) -> None:
        limit_worker_threads()

    def process(self, shard: int, parts: list[PartSummary]) -> Iterator[ShardSummary]:
        numbers = sorted(part.number for part in parts)
        batches = [batch for number in numbers for batch in self._read_batches(number, shard)]
        table = pa.Table.from_batches(batches, schema=_PART_SCHEMA).combine_chunks()
        table = table.sort_by([("doc_id", "ascending"), ("source", "ascending")])
        doc_ids, sources = table["doc_id"].to_pylist(), table["source"].to_pylist()
        first = [row for row, doc_id in enumerate(doc_ids) if row == 0 or doc_id != doc_ids[row - 1]]
        kept = set(first)
        rejects = [
            _reject_line(Reject(sources[row], "duplicate", "the same text as another document"))
            for row in range(len(doc_ids))
            if row not in kept
        ]
        Metrics.counter(DOCUMENTS, "rejected-duplicate").inc(len(rejects))
        sentences = table["sentences"].take(pa.array(first, pa.int64())).combine_chunks()
        documents = documents_table([doc_ids[row] for row in first], [sources[row] for row in first], sentences)
        name = shard_name(*self._shards[shard])
        write_table(storage.join(self._directory, name), documents, DOCUMENTS_PER_BATCH)
        texts = sentences.flatten()
        statistics = {
            "sentences": len(texts),
            "characters": int(pc.sum(pc.utf8_length(texts)).as_py() or 0),
        }
        yield ShardSummary(record_of(self._directory, name, len(first), statistics), rejects)

    def _read_batches(self, part: int, shard: int) -> list[pa.RecordBatch]:
        filesystem, path = storage.filesystem_of(storage.join(self._directory, PARTS_DIRECTORY, f"{part:06d}.arrow"))
        with filesystem.open_input_file(path) as stream:
            file = pa.ipc.open_file(stream)
            return [file.get_batch(number) for number in range(shard, file.num_record_batches, len(self._shards))]


class CompleteDocuments(beam.DoFn):
    """All `ShardSummary` -> `Manifest`: gather the rejects, write the manifest, remove the parts."""

    def __init__(self, directory: str, key: StageKey):
        self._directory = directory
        self._key = key

    def process(self, shards: list[ShardSummary], parts: list[PartSummary]) -> Iterator[Manifest]:
        rejected: Counter[str] = Counter()
        shards = sorted(shards, key=lambda shard: shard.file.name)
        with storage.atomic_output(storage.join(self._directory, REJECTS_NAME)) as stream:
            for part in sorted(parts, key=lambda part: part.number):
                rejected.update(part.rejected)
                name = f"{PARTS_DIRECTORY}/{part.number:06d}.rejected.jsonl.gz"
                stream.write(storage.read_bytes(storage.join(self._directory, name)))
            duplicates = [line for shard in shards for line in shard.rejects]
            rejected["duplicate"] += len(duplicates)
            stream.write(gzip.compress("".join(duplicates).encode(), mtime=0))
        files = [shard.file for shard in shards]
        num_rejected = sum(rejected.values())
        statistics: dict[str, Any] = {
            "documents_read": sum(part.documents_read for part in parts),
            "documents_kept": sum(file.rows for file in files),
            "documents_rejected": num_rejected,
            "rejected_by_reason": {reason: count for reason, count in sorted(rejected.items()) if count},
            "train_documents": sum(file.rows for file in files if file.name.startswith("train-")),
            "heldout_documents": sum(file.rows for file in files if file.name.startswith("heldout-")),
            "sentences": sum(file.statistics["sentences"] for file in files),
            "characters": sum(file.statistics["characters"] for file in files),
        }
        assert statistics["documents_read"] == statistics["documents_kept"] + num_rejected, statistics
        rejects_file = record_of(self._directory, REJECTS_NAME, num_rejected)
        manifest = self._key.manifest([*files, rejects_file], statistics, __version__)
        write_manifest(self._directory, manifest)
        storage.remove_directory(storage.join(self._directory, PARTS_DIRECTORY))
        yield manifest


def _part_batch(documents: list[Document]) -> pa.RecordBatch:
    columns = [
        pa.array([document.doc_id for document in documents], _PART_SCHEMA.field("doc_id").type),
        pa.array([document.source for document in documents], pa.string()),
        pa.array([document.sentences for document in documents], _PART_SCHEMA.field("sentences").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_PART_SCHEMA)


def _packed_rejects(rejects: list[Reject]) -> bytes:
    return gzip.compress("".join(map(_reject_line, rejects)).encode(), mtime=0)


def _reject_line(reject: Reject) -> str:
    return json.dumps(reject.__dict__, ensure_ascii=False, sort_keys=True) + "\n"
