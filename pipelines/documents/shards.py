"""Last transforms of job 1: shards collect their documents from all parts and drop duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics

from pipelines import __version__
from pipelines.contract import storage
from pipelines.contract.manifest import (
    FileRecord,
    Manifest,
    StageKey,
    read_manifest,
    record_of,
    require_manifest,
    write_manifest,
)
from pipelines.contract.schemas import DOCUMENTS_SCHEMA, documents_schema
from pipelines.contract.workspace import DOCUMENTS, REJECTS_NAME, SHARDS_GROUP, shard_name
from pipelines.documents.cleaning import CLEANING_COUNTS
from pipelines.documents.document import PartSummary, shards_of
from pipelines.documents.near_duplicates import read_choices
from pipelines.documents.parts import EVALUATION_GRAMS_NAME, PART_SCHEMA, part_name, part_rejects_name
from pipelines.documents.rejects import REJECTS_SHOWN, first_of_each_reason, write_rejects
from pipelines.documents.summary import require_documents
from pipelines.filtering.decontamination import read_facts
from pipelines.jobs.arrow_files import DOCUMENTS_PER_BATCH, open_arrow, write_table
from pipelines.jobs.runner import limit_worker_threads
from pipelines.reading.source import Reject
from pipelines.results.builds import install_build
from pipelines.results.marks import building_directory, is_open
from pipelines.results.unfinished import finish_unit, finished_unit, scratch_name, scratch_uri
from pipelines.settings.documents import DocumentsConfig
from pipelines.statistics.preprocessing import DecontaminationStatistics, DocumentsStatistics

_SOURCE_NUMBER = "source_number"


class ShardSummary(NamedTuple):
    """A finished shard, its rejects by reason, and some of them."""

    file: FileRecord
    rejected: dict[str, int]
    first_rejects: dict[str, list[list[str]]]


class CollectShard(beam.DoFn):
    """Shard number -> `ShardSummary`: collect a shard's documents from all parts, drop duplicates, write the file.

    Equal documents are adjacent once sorted, and the first by source name stays. Near-duplicates are dropped as
    `ChooseDocuments` has listed them.
    """

    def __init__(self, directory: str, config: DocumentsConfig, source_names: Sequence[str] = ()):
        """Collect from the parts of a directory; `source_names`: of each part's source, empty if they have none."""
        self._directory = directory
        self._config = config
        self._shards = shards_of(config)
        self._source_names = source_names

    def setup(self) -> None:
        limit_worker_threads()

    def process(self, shard: int, parts: list[PartSummary], chosen: list[int] | None = None) -> Iterator[ShardSummary]:
        # Only a dependency: the lists of near-duplicates are in files.
        del chosen
        name = shard_name(*self._shards[shard])
        unit = f"{SHARDS_GROUP}/{name}"
        record = finished_unit(self._directory, unit)
        if record is None:
            summary = self._collect(shard, name, sorted(part.number for part in parts))
            record = summary._asdict() | {"file": summary.file.model_dump()}
            finish_unit(self._directory, unit, record, [name, scratch_name(_rejects_name(name))])
        summary = ShardSummary(**record | {"file": FileRecord.model_validate(record["file"])})
        for reason, count in summary.rejected.items():
            Metrics.counter(DOCUMENTS, f"rejected-{reason}").inc(count)
        yield summary

    def _collect(self, shard: int, name: str, parts: list[int]) -> ShardSummary:
        batches = [batch for part in parts for batch in self._read_batches(part, shard)]
        table = pa.Table.from_batches(batches, schema=PART_SCHEMA).combine_chunks()
        if self._source_names:
            table = table.append_column(_SOURCE_NUMBER, pa.array(self._source_numbers(parts, shard), pa.int32()))
        table = table.sort_by([("doc_id", "ascending"), ("source", "ascending")])
        doc_ids, sources = table["doc_id"].to_pylist(), table["source"].to_pylist()
        choices = read_choices(self._directory, name) if self._config.near_duplicates is not None else {}
        kept: list[int] = []
        rejects: list[Reject] = []
        for row, (doc_id, source) in enumerate(zip(doc_ids, sources, strict=True)):
            if row and doc_id == doc_ids[row - 1]:
                rejects.append(Reject(source, "duplicate", f"the same text as document {doc_id.hex()}"))
            elif doc_id in choices:
                rejects.append(choices[doc_id].reject_of(source))
            else:
                kept.append(row)
        sentences = table["sentences"].take(pa.array(kept, pa.int64())).combine_chunks()
        documents = documents_table([doc_ids[row] for row in kept], [sources[row] for row in kept], sentences)
        if self._source_names:
            numbers = table[_SOURCE_NUMBER].take(pa.array(kept, pa.int64())).combine_chunks()
            documents = _with_source_names(documents, numbers, self._config.source_names)
        write_table(storage.join(self._directory, name), documents, DOCUMENTS_PER_BATCH)
        write_rejects(scratch_uri(self._directory, _rejects_name(name)), rejects)
        texts = sentences.flatten()
        statistics = {
            "sentences": len(texts),
            "characters": int(pc.sum(pc.utf8_length(texts)).as_py() or 0),
        }
        record = record_of(self._directory, name, len(kept), statistics)
        rejected = Counter(reject.reason for reject in rejects)
        return ShardSummary(record, dict(rejected), first_of_each_reason(rejects))

    def _source_numbers(self, parts: list[int], shard: int) -> list[int]:
        """The number of each row's source, in the order of `_read_batches`."""
        numbers: list[int] = []
        for part in parts:
            rows = sum(batch.num_rows for batch in self._read_batches(part, shard))
            numbers += [self._config.source_names.index(self._source_names[part])] * rows
        return numbers

    def _read_batches(self, part: int, shard: int) -> list[pa.RecordBatch]:
        with open_arrow(scratch_uri(self._directory, part_name(part))) as file:
            return [file.get_batch(number) for number in range(shard, file.num_record_batches, len(self._shards))]


class CompleteDocuments(beam.DoFn):
    """All `ShardSummary` -> `Manifest`: gather the rejects, write the manifest, install the build."""

    def __init__(self, directory: str, key: StageKey):
        self._result_directory = directory
        self._directory = building_directory(directory)
        self._key = key

    def process(self, shards: list[ShardSummary], parts: list[PartSummary]) -> Iterator[Manifest]:
        # A runner may repeat this step after it succeeded, when the temporary files are gone.
        if is_open(self._result_directory) and read_manifest(self._directory) is None:
            self._complete(
                sorted(shards, key=lambda shard: shard.file.name), sorted(parts, key=lambda part: part.number)
            )
        install_build(self._result_directory, self._key)
        yield require_manifest(self._result_directory, DOCUMENTS, "pipelines.shard_corpus")

    def _complete(self, shards: list[ShardSummary], parts: list[PartSummary]) -> None:
        names = [part_rejects_name(part.number) for part in parts] + [
            _rejects_name(shard.file.name) for shard in shards
        ]
        with storage.atomic_output(storage.join(self._directory, REJECTS_NAME)) as stream:
            for name in names:
                stream.write(storage.read_bytes(scratch_uri(self._directory, name)))
        rejected: Counter[str] = Counter()
        first_rejects: dict[str, list[list[str]]] = {}
        summaries: list[PartSummary | ShardSummary] = [*parts, *shards]
        for summary in summaries:
            rejected.update(summary.rejected)
            for reason, examples in summary.first_rejects.items():
                first_rejects[reason] = [*first_rejects.get(reason, []), *examples][:REJECTS_SHOWN]
        cleaned = Counter(dict.fromkeys(CLEANING_COUNTS, 0))
        for part in parts:
            cleaned.update(part.cleaned)
        files = [shard.file for shard in shards]
        num_rejected = sum(rejected.values())
        statistics = DocumentsStatistics(
            documents_read=sum(part.documents_read for part in parts),
            documents_kept=sum(file.rows for file in files),
            documents_rejected=num_rejected,
            rejected_by_reason={reason: count for reason, count in sorted(rejected.items()) if count},
            first_rejects=dict(sorted(first_rejects.items())),
            cleaning=dict(cleaned),
            train_documents=sum(file.rows for file in files if file.name.startswith("train-")),
            heldout_documents=sum(file.rows for file in files if file.name.startswith("heldout-")),
            sentences=sum(file.statistics["sentences"] for file in files),
            characters=sum(file.statistics["characters"] for file in files),
        )
        if (decontamination := self._decontamination(parts)) is not None:
            statistics = statistics.model_copy(update={"decontamination": decontamination})
        assert statistics.documents_read == statistics.documents_kept + num_rejected, statistics
        require_documents(statistics, self._key.config)
        rejects_file = record_of(self._directory, REJECTS_NAME, num_rejected)
        write_manifest(self._directory, self._key.manifest([*files, rejects_file], statistics, __version__))

    def _decontamination(self, parts: list[PartSummary]) -> DecontaminationStatistics | None:
        uri = scratch_uri(self._directory, EVALUATION_GRAMS_NAME)
        if storage.file_size_bytes(uri) is None:
            return None
        facts = read_facts(uri)
        dropped: Counter[str] = Counter()
        for part in parts:
            dropped.update(part.contaminated or {})
        return DecontaminationStatistics(
            evaluation_texts=facts.texts,
            short_texts=facts.short_texts,
            evaluation_grams=facts.grams,
            documents_by_file=dict(sorted(dropped.items())),
        )


def _rejects_name(shard: str) -> str:
    return f"{SHARDS_GROUP}/{shard}.rejected.jsonl.gz"


def _with_source_names(documents: pa.Table, numbers: pa.Array, names: Sequence[str]) -> pa.Table:
    """Add the column of `documents_schema`, with all names in its dictionary, so that it is the same in all shards."""
    schema = documents_schema(names)
    column = pa.DictionaryArray.from_arrays(numbers, pa.array(names, pa.string()))
    return pa.Table.from_arrays([*documents.columns, pa.chunked_array([column])], schema=schema)


def documents_table(doc_ids: Sequence[bytes], sources: Sequence[str], sentences: pa.Array) -> pa.Table:
    """Put the columns of a documents shard together; the dictionary of sources is in order of first appearance."""
    dictionary: dict[str, int] = {}
    indices = [dictionary.setdefault(source, len(dictionary)) for source in sources]
    source_column = pa.DictionaryArray.from_arrays(
        pa.array(indices, pa.int32()), pa.array(list(dictionary), pa.string())
    )
    columns = [pa.array(doc_ids, DOCUMENTS_SCHEMA.field("doc_id").type), source_column, sentences]
    return pa.Table.from_arrays(columns, schema=DOCUMENTS_SCHEMA)
