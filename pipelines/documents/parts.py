"""First transform of job 1: parts of a corpus become files of documents, sorted by shard.

Texts move through files, not through the runner: each part of the input becomes one file whose record batches are the
shards' portions, and each shard then collects its batch from every part. The runner shuffles file names, so memory is
bounded by a part and a shard on any runner.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from pipelines.contract import storage
from pipelines.contract.schemas import DOCUMENT_ID_BYTES, Split
from pipelines.contract.workspace import DOCUMENTS, PARTS_GROUP
from pipelines.documents.document import CorpusPart, Document, DocumentReader, PartSummary, shard_number, shards_of
from pipelines.documents.near_duplicates import SignatureFile, signatures_name, use_one_thread
from pipelines.documents.rejects import first_of_each_reason, write_rejects
from pipelines.filtering.decontamination import EvaluationGrams
from pipelines.jobs.runner import limit_worker_threads
from pipelines.reading.source import Reject
from pipelines.reading.unpacking import StorageFaultError
from pipelines.results.unfinished import finish_unit, finished_unit, scratch_name, scratch_uri
from pipelines.settings.documents import DocumentsConfig

ROUND_CHARACTERS = 32 << 20
RETRY_PAUSES_SECONDS = (1.0, 4.0)
"""A network file system that recovers does so within seconds; otherwise it needs an operator."""

EVALUATION_GRAMS_NAME = "evaluation-grams.arrow"
"""Scratch file of the n-grams that no document may have."""

PART_SCHEMA = pa.schema(
    [
        ("doc_id", pa.binary(DOCUMENT_ID_BYTES)),
        ("source", pa.string()),
        ("sentences", pa.list_(pa.field("item", pa.string(), nullable=False))),
    ]
)


def part_name(number: int) -> str:
    """Scratch file of a part's documents."""
    return f"{PARTS_GROUP}/{number:06d}.arrow"


def part_rejects_name(number: int) -> str:
    """Scratch file of a part's rejects."""
    return f"{PARTS_GROUP}/{number:06d}.rejected.jsonl.gz"


class ReadPart(beam.DoFn):
    """`CorpusPart` -> `PartSummary`: read a part's files and write its documents, one record batch per shard.

    A part that unpacks to much more than its size is written in rounds of such batches, so memory stays bounded. A part
    that an interrupted run has finished is not read again.
    """

    def __init__(self, directory: str, config: DocumentsConfig):
        self._directory = directory
        self._config = config
        self._shards = shards_of(config)
        self._reader: DocumentReader | None = None

    def setup(self) -> None:
        limit_worker_threads()
        if self._config.near_duplicates is not None:
            use_one_thread()

    def process(self, part: CorpusPart) -> Iterator[PartSummary]:
        unit = f"{PARTS_GROUP}/{part.number:06d}"
        record = finished_unit(self._directory, unit)
        if record is None:
            record = self._read_patiently(part)._asdict()
            names = [part_name(part.number), part_rejects_name(part.number)]
            if self._config.near_duplicates is not None:
                names.append(signatures_name(part.number))
            finish_unit(self._directory, unit, record, map(scratch_name, names))
        summary = PartSummary(**record)
        Metrics.counter(DOCUMENTS, "read").inc(summary.documents_read)
        for reason, count in summary.rejected.items():
            Metrics.counter(DOCUMENTS, f"rejected-{reason}").inc(count)
        yield summary

    def _read_patiently(self, part: CorpusPart) -> PartSummary:
        """Read a part, again from its start when its storage fails: its files appear only when it is complete.

        Raises:
            StorageFaultError: it failed each time.
        """
        for pause_seconds in RETRY_PAUSES_SECONDS:
            try:
                return self._read(part)
            except StorageFaultError as error:
                print(f"{DOCUMENTS}: {error}; retrying in {pause_seconds:g} s", file=sys.stderr, flush=True)
                time.sleep(pause_seconds)
        try:
            return self._read(part)
        except StorageFaultError as error:
            # Without `from None` the first cause would be shown instead of this line.
            raise StorageFaultError(
                f"{error}, {len(RETRY_PAUSES_SECONDS) + 1} times; no text was skipped: repair the storage, "
                "then run the same command again, which keeps what is finished"
            ) from None

    def _read(self, part: CorpusPart) -> PartSummary:
        # Loading the language model takes a second, which a worker without work must not spend.
        reader = self._reader = self._reader or DocumentReader(self._config, self._evaluation_grams())
        reader.cleaned.clear()
        reader.contaminated.clear()
        portions: dict[tuple[Split, int], list[Document]] = {(split, index): [] for split, index, _ in self._shards}
        rejects: list[Reject] = []
        documents_read = held_characters = 0
        with ExitStack() as stack:
            rounds = self._open_rounds(part.number, stack)
            for item in (item for file in part.files for item in reader.read(file, part.source)):
                documents_read += 1
                if isinstance(item, Reject):
                    rejects.append(item)
                    continue
                portions[shard_number(item.doc_id, self._config.heldout_share, self._config.num_shards)].append(item)
                held_characters += sum(map(len, item.sentences))
                if held_characters >= ROUND_CHARACTERS:
                    rounds.write(portions)
                    held_characters = 0
            rounds.write(portions)
        write_rejects(scratch_uri(self._directory, part_rejects_name(part.number)), rejects)
        rejected = Counter(reject.reason for reject in rejects)
        return PartSummary(
            part.number,
            documents_read,
            dict(rejected),
            dict(+reader.cleaned),
            first_of_each_reason(rejects),
            dict(reader.contaminated),
        )

    def _evaluation_grams(self) -> EvaluationGrams | None:
        if self._config.decontamination is None:
            return None
        return EvaluationGrams(scratch_uri(self._directory, EVALUATION_GRAMS_NAME))

    def _open_rounds(self, number: int, stack: ExitStack) -> _Rounds:
        stream = stack.enter_context(storage.atomic_output(scratch_uri(self._directory, part_name(number))))
        writer = stack.enter_context(pa.ipc.new_file(stream, PART_SCHEMA))
        if self._config.near_duplicates is None:
            return _Rounds(writer, None)
        uri = scratch_uri(self._directory, signatures_name(number))
        return _Rounds(writer, stack.enter_context(SignatureFile.writing(uri, self._config.near_duplicates)))


class _Rounds(NamedTuple):
    writer: pa.RecordBatchFileWriter
    signatures: SignatureFile | None

    def write(self, portions: dict[tuple[Split, int], list[Document]]) -> None:
        for documents in portions.values():
            self.writer.write_batch(_part_batch(documents))
            if self.signatures is not None:
                self.signatures.write(documents)
            documents.clear()


def _part_batch(documents: list[Document]) -> pa.RecordBatch:
    columns = [
        pa.array([document.doc_id for document in documents], PART_SCHEMA.field("doc_id").type),
        pa.array([document.source for document in documents], pa.string()),
        pa.array([document.sentences for document in documents], PART_SCHEMA.field("sentences").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PART_SCHEMA)
