"""Transforms of job 1 that find near-duplicates; they shuffle band keys and ids, 24 bytes a band, never texts.

`ReadPart` writes the signatures of a part's documents into a scratch file. `EmitBands` sends the part's band keys to
buckets, `MeetInBands` finds the documents that share one, and `ChooseDocuments`, on one node, compares the signatures
of those and writes for each shard which documents to drop. That node holds every document that met another: id and
source (some 300 bytes) and signature (512 bytes at 128 permutations), so 8 GB for ten million of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.contract import storage
from pipelines.contract.schemas import DOCUMENT_ID_BYTES
from pipelines.contract.workspace import shard_name
from pipelines.documents.document import Document, PartSummary, shard_number, shards_of
from pipelines.documents.minhash import (
    alike_components,
    band_keys,
    band_shape,
    meeting_groups,
    signatures_of,
    similarities,
)
from pipelines.filtering.shingles import has_words
from pipelines.jobs.arrow_files import open_arrow, read_table, write_table
from pipelines.reading.source import Reject
from pipelines.results.unfinished import scratch_uri
from pipelines.settings.documents import DocumentsConfig, NearDuplicatesConfig

NEAR_DUPLICATE = "near-duplicate"

_MAX_BUCKETS = 256
_PARTS_PER_BUCKET = 16
_CHOICES_PER_BATCH = 1 << 16
_ROWS_AT_ONCE = 1 << 14
_CHOICES_SCHEMA = pa.schema(
    [
        ("doc_id", pa.binary(DOCUMENT_ID_BYTES)),
        ("kept_id", pa.binary(DOCUMENT_ID_BYTES)),
        ("kept_source", pa.string()),
        ("similarity", pa.float64()),
    ]
)


def signatures_name(part: int) -> str:
    """Scratch file of the signatures of a part's documents."""
    return f"signatures/{part:06d}.arrow"


def num_buckets(num_parts: int) -> int:
    """Number of buckets, with about 7 MB of band keys each; it does not change the result."""
    return min(_MAX_BUCKETS, 1 + num_parts // _PARTS_PER_BUCKET)


def use_one_thread() -> None:
    """Use one thread in rensa, because the runner already uses all cores; call it in a DoFn's `setup`."""
    os.environ["RAYON_NUM_THREADS"] = "1"


class SignatureFile:
    """Writes the signatures of documents; those without a single word have none and are like no other."""

    def __init__(self, writer: pa.RecordBatchFileWriter, schema: pa.Schema, config: NearDuplicatesConfig):
        self._writer = writer
        self._schema = schema
        self._config = config

    @classmethod
    @contextmanager
    def writing(cls, uri: str, config: NearDuplicatesConfig) -> Iterator[SignatureFile]:
        signature = pa.binary(config.num_permutations * np.dtype(np.uint32).itemsize)
        schema = pa.schema(
            [("doc_id", pa.binary(DOCUMENT_ID_BYTES)), ("source", pa.string()), ("signature", signature)]
        )
        with storage.atomic_output(uri) as stream, pa.ipc.new_file(stream, schema) as writer:
            yield cls(writer, schema, config)

    def write(self, documents: Iterable[Document]) -> None:
        texts = [(document, " ".join(document.sentences)) for document in documents]
        texts = [(document, text) for document, text in texts if has_words(text)]
        if not texts:
            return
        signatures = signatures_of((text for _, text in texts), self._config)
        columns = [
            pa.array([document.doc_id for document, _ in texts], self._schema.field("doc_id").type),
            pa.array([document.source for document, _ in texts], pa.string()),
            pa.array([row.tobytes() for row in signatures], self._schema.field("signature").type),
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))


class EmitBands(beam.DoFn):
    """`PartSummary` -> (bucket, its rows of band key and document id as bytes)."""

    def __init__(self, directory: str, config: NearDuplicatesConfig, buckets: int):
        self._directory = directory
        self._shape = band_shape(config)
        self._buckets = buckets

    def process(self, part: PartSummary) -> Iterator[tuple[int, bytes]]:
        with open_arrow(scratch_uri(self._directory, signatures_name(part.number))) as file:
            batches: list[pa.RecordBatch] = []
            for number in range(file.num_record_batches):
                batches.append(file.get_batch(number))
                if sum(map(len, batches)) >= _ROWS_AT_ONCE or number == file.num_record_batches - 1:
                    yield from self._emit(pa.Table.from_batches(batches))
                    batches.clear()

    def _emit(self, table: pa.Table) -> Iterator[tuple[int, bytes]]:
        ids = _halves(b"".join(table["doc_id"].to_pylist()))
        keys = band_keys(_signature_rows(table["signature"].to_pylist()), self._shape)
        entries = np.column_stack([keys.ravel(), np.repeat(ids, self._shape.bands, axis=0)])
        bucket_of = entries[:, 0] % np.uint64(self._buckets)
        for bucket in range(self._buckets):
            if (chosen := entries[bucket_of == bucket]).size:
                yield bucket, chosen.tobytes()


class MeetInBands(beam.DoFn):
    """(bucket, rows of all parts) -> rows of (group, document id) as bytes, for the groups that share a band key."""

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[bytes]:
        _, blocks = element
        entries = np.frombuffer(b"".join(blocks), np.uint64).reshape(-1, 3)
        groups = meeting_groups(entries)
        if groups:
            numbers = np.repeat(np.arange(len(groups), dtype=np.uint64), [len(group) for group in groups])
            yield np.column_stack([numbers, np.concatenate(groups)]).tobytes()


class Choice(NamedTuple):
    """Why a document is dropped: it is similar to one that stays."""

    kept_id: bytes
    kept_source: str
    similarity: float

    def reject_of(self, source: str) -> Reject:
        detail = f"estimated similarity {self.similarity:.2f} to {self.kept_source}, document {self.kept_id.hex()}"
        return Reject(source, NEAR_DUPLICATE, detail)


class ChooseDocuments(beam.DoFn):
    """All rows of `MeetInBands` -> number of documents to drop: writes for each shard which ones, and why."""

    def __init__(self, directory: str, config: DocumentsConfig):
        assert config.near_duplicates is not None
        self._directory = directory
        self._config = config
        self._min_similarity = config.near_duplicates.min_similarity

    def process(self, blocks: list[bytes], parts: list[PartSummary]) -> Iterator[int]:
        tables = [np.frombuffer(block, np.uint64).reshape(-1, 3) for block in blocks]
        rows = np.concatenate(tables) if tables else np.zeros((0, 3), np.uint64)
        ids, row_of = np.unique(rows[:, 1:], axis=0, return_inverse=True)
        doc_ids = [row.astype(">u8").tobytes() for row in ids]
        groups: list[list[int]] = []
        start = 0
        for table in tables:
            cuts = np.flatnonzero(np.diff(table[:, 0])) + 1
            groups += [group.tolist() for group in np.split(row_of[start : start + len(table)], cuts)]
            start += len(table)
        signatures, sources = self._signatures(doc_ids, [part.number for part in parts])
        kept = alike_components(groups, signatures, self._min_similarity)
        choices: dict[str, list[dict[str, Any]]] = {shard_name(*shard): [] for shard in shards_of(self._config)}
        counts = {split: count for split, _, count in shards_of(self._config)}
        dropped = np.flatnonzero(kept != np.arange(len(kept)))
        for row in dropped.tolist():
            stays = int(kept[row])
            similarity = float(similarities(signatures[row], signatures[stays : stays + 1])[0])
            split, index = shard_number(doc_ids[row], self._config.heldout_share, self._config.num_shards)
            choice = Choice(doc_ids[stays], sources[stays], similarity)
            choices[shard_name(split, index, counts[split])].append({"doc_id": doc_ids[row], **choice._asdict()})
        for name, rows_of_shard in choices.items():
            table = pa.Table.from_pylist(rows_of_shard, _CHOICES_SCHEMA)
            write_table(_choices_uri(self._directory, name), table, _CHOICES_PER_BATCH)
        yield len(dropped)

    def _signatures(self, doc_ids: list[bytes], parts: list[int]) -> tuple[NDArray[np.uint32], list[str]]:
        """Signatures of some documents, and the first of each one's sources in alphabetical order."""
        row_of = {doc_id: row for row, doc_id in enumerate(doc_ids)}
        found: list[bytes] = [b""] * len(doc_ids)
        sources = [""] * len(doc_ids)
        for part in parts if doc_ids else []:
            with open_arrow(scratch_uri(self._directory, signatures_name(part))) as file:
                for number in range(file.num_record_batches):
                    batch = file.get_batch(number)
                    for place, doc_id in enumerate(batch["doc_id"].to_pylist()):
                        row = row_of.get(doc_id)
                        if row is not None:
                            source = batch["source"][place].as_py()
                            sources[row] = min(sources[row], source) if found[row] else source
                            found[row] = batch["signature"][place].as_py()
        return _signature_rows(found), sources


def read_choices(directory: str, shard: str) -> dict[bytes, Choice]:
    """The documents of a shard to drop, by id."""
    rows = read_table(_choices_uri(directory, shard)).to_pylist()
    return {row["doc_id"]: Choice(row["kept_id"], row["kept_source"], row["similarity"]) for row in rows}


def _choices_uri(directory: str, shard: str) -> str:
    return scratch_uri(directory, f"{NEAR_DUPLICATE}/{shard}")


def _signature_rows(signatures: list[bytes]) -> NDArray[np.uint32]:
    return np.frombuffer(b"".join(signatures), np.uint32).reshape(len(signatures), -1) if signatures else _NO_SIGNATURES


def _halves(doc_ids: bytes) -> NDArray[np.uint64]:
    """Ids as two numbers each, which sort like the bytes."""
    return np.frombuffer(doc_ids, ">u8").reshape(-1, 2).astype(np.uint64)


_NO_SIGNATURES = np.zeros((0, 0), np.uint32)
