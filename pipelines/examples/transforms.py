"""Transforms of job 3: shards of documents become files of examples.

`BuildShard` makes all rows of one documents shard and writes them in portions, one for each file to come;
`BalanceShard` collects a file's portions from all shards and puts the rows in random order. Rows move through files,
not through the runner, so memory is bounded by one shard of documents and one file of examples on any runner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from numpy.typing import NDArray

from pipelines import __version__
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord, Manifest, StageKey, record_of, require_manifest, write_manifest
from pipelines.contract.schemas import MASK, SPLITS, UNK, LengthBin, examples_schema, length_bins
from pipelines.contract.statistics import ExamplesStatistics, ExamplesText, LengthStatistics
from pipelines.contract.workspace import (
    DOCUMENTS,
    EXAMPLES,
    FILES_GROUP,
    ROWS_GROUP,
    VOCABULARY,
    VOCABULARY_NAME,
    examples_name,
    length_directory,
    shard_name,
)
from pipelines.examples.arrow_rows import EXAMPLES_PER_BATCH, examples_batch, examples_of
from pipelines.examples.balancing import group_of, left_over_rows
from pipelines.examples.losses import LOSSES, losses_of
from pipelines.examples.masking import build_examples
from pipelines.examples.planning import (
    ShardNumber,
    ShardText,
    deal_shard,
    masking_rules,
    metadata_of,
    random_words,
    read_documents,
)
from pipelines.examples.statistics import COUNTS, counts_of, rows_per_length, summary_of
from pipelines.examples.warnings import refusal_of, warnings_of
from pipelines.jobs.arrow_files import open_arrow, read_table
from pipelines.jobs.runner import limit_worker_threads
from pipelines.results.builds import install_build
from pipelines.results.marks import building_directory, is_open
from pipelines.results.unfinished import finish_unit, finished_unit, scratch_name, scratch_uri
from pipelines.settings.examples import ExampleLengthConfig, ExamplesConfig
from pipelines.settings.vocabulary import VocabularyConfig
from pipelines.wordpiece.token_counts import TokenCounts, added, shares_of
from pipelines.wordpiece.tokenizer import WordPieceTokenizer


class ShardRows(NamedTuple):
    """What `BuildShard` made of a shard: rows of each bin and `LOSSES`, by maximum length, and what tokenising lost."""

    shard: ShardNumber
    rows: dict[int, list[int]]
    losses: dict[int, dict[str, int]]
    documents: int
    counts: TokenCounts


class FilesToWrite(NamedTuple):
    """The files of one maximum length and number, one a bin."""

    max_seq_length: int
    shard: ShardNumber


class WrittenFiles(NamedTuple):
    """What `BalanceShard` wrote, and how many of the rows have 0, 1, ... `max_seq_length` tokens."""

    max_seq_length: int
    files: list[FileRecord]
    rows_by_length: list[int]


class BuildShard(beam.DoFn):
    """`ShardNumber` -> `ShardRows`: make all rows of a documents shard and write them in portions.

    A scratch file holds one record batch for each bin and file, and after a bin's files one with the rows left over.
    """

    def __init__(self, directories: dict[str, str], config: ExamplesConfig, vocabulary: VocabularyConfig):
        self._directories = directories
        self._config = config
        self._vocabulary = vocabulary

    def setup(self) -> None:
        limit_worker_threads()
        text = storage.read_bytes(storage.join(self._directories[VOCABULARY], VOCABULARY_NAME)).decode()
        self._tokens = text.split("\n")[:-1]
        self._tokenizer = WordPieceTokenizer(self._tokens, self._vocabulary.lowercase, self._vocabulary.strip_accents)

    def process(self, shard: ShardNumber) -> Iterator[ShardRows]:
        directory, unit = self._directories[EXAMPLES], f"{ROWS_GROUP}/{shard_name(*shard)}"
        record = finished_unit(directory, unit)
        if record is None:
            name = storage.join(self._directories[DOCUMENTS], shard_name(*shard))
            text = read_documents(read_table(name), self._tokenizer)
            record = {
                "lengths": [self._write_rows(text, shard, length) for length in self._config.lengths],
                "documents": len(text.sources),
                "counts": list(text.counts),
            }
            names = [scratch_name(rows_name(length.max_seq_length, shard)) for length in self._config.lengths]
            finish_unit(directory, unit, record, names)
        lengths = [length.max_seq_length for length in self._config.lengths]
        rows, losses = (dict(zip(lengths, column, strict=True)) for column in zip(*record["lengths"], strict=True))
        yield ShardRows(shard, rows, losses, record["documents"], TokenCounts(*record["counts"]))

    def _write_rows(
        self, text: ShardText, shard: ShardNumber, length: ExampleLengthConfig
    ) -> tuple[list[int], dict[str, int]]:
        """Write the rows of one length: how many each bin has, and what was lost."""
        documents = text.documents
        plan, dealt = deal_shard(documents, shard, self._config, length.max_seq_length)
        losses = losses_of(documents, text.sources, plan, self._config.passes, length.max_seq_length)
        rules = masking_rules(self._config, length, self._tokens)
        schema = examples_schema(len(self._tokens), {})
        uri = scratch_uri(self._directories[EXAMPLES], rows_name(length.max_seq_length, shard))
        with storage.atomic_output(uri) as stream, pa.ipc.new_file(stream, schema) as writer:
            for portions in dealt:
                for rows in portions:
                    examples = build_examples(documents.input_ids, plan.take(rows), rules)
                    writer.write_batch(examples_batch(examples, schema))
        return [sum(map(len, portions)) for portions in dealt], losses


def rows_name(max_seq_length: int, shard: ShardNumber) -> str:
    """Scratch file in which `BuildShard` leaves the rows of a shard."""
    return f"{ROWS_GROUP}/{length_directory(max_seq_length)}/{shard_name(*shard)}"


class BalanceShard(beam.DoFn):
    """`FilesToWrite` -> `WrittenFiles`: collect a file's portions from all shards of its group, in random order."""

    def __init__(
        self, directory: str, config: ExamplesConfig, vocabulary: VocabularyConfig, tokens: list[str], sha256: str
    ):
        self._directory = directory
        self._config = config
        self._vocabulary = vocabulary
        self._vocabulary_size = len(tokens)
        self._mask_id, self._unk_id = tokens.index(MASK), tokens.index(UNK)
        self._vocabulary_sha256 = sha256

    def setup(self) -> None:
        limit_worker_threads()

    def process(self, target: FilesToWrite, shards: list[ShardRows]) -> Iterator[WrittenFiles]:
        max_seq_length, shard = target
        unit = f"{FILES_GROUP}/{length_directory(max_seq_length)}/{shard_name(*shard)}"
        record = finished_unit(self._directory, unit)
        if record is None:
            rows = {one.shard.number: one.rows[max_seq_length] for one in shards if one.shard.split == shard.split}
            written = self._write_files(target, [rows[number] for number in group_of(shard.number, shard.total)])
            record = [[file.model_dump(mode="json") for file in written.files], written.rows_by_length]
            finish_unit(self._directory, unit, record, [file.name for file in written.files])
        files, rows_by_length = record
        yield WrittenFiles(max_seq_length, [FileRecord.model_validate(file) for file in files], rows_by_length)

    def _write_files(self, target: FilesToWrite, rows_of_group: list[list[int]]) -> WrittenFiles:
        max_seq_length, shard = target
        group = group_of(shard.number, shard.total)
        files: list[FileRecord] = []
        rows_by_length = np.zeros(max_seq_length + 1, np.int64)
        with ExitStack() as stack:
            names = [rows_name(max_seq_length, shard._replace(number=number)) for number in group]
            sources = [stack.enter_context(open_arrow(scratch_uri(self._directory, name))) for name in names]
            for bin_number, length_bin in enumerate(length_bins(max_seq_length, self._config.num_length_bins)):
                left_over = [rows[bin_number] % len(group) for rows in rows_of_group]
                rows = _collect(sources, bin_number, group.index(shard.number), left_over)
                files.append(self._write_file(target, bin_number, length_bin, rows, rows_by_length))
        return WrittenFiles(max_seq_length, files, rows_by_length.tolist())

    def _write_file(
        self,
        target: FilesToWrite,
        bin_number: int,
        length_bin: LengthBin,
        rows: pa.Table,
        rows_by_length: NDArray[np.int64],
    ) -> FileRecord:
        """Write one file and add its rows to `rows_by_length`."""
        max_seq_length, shard = target
        length = next(one for one in self._config.lengths if one.max_seq_length == max_seq_length)
        metadata = metadata_of(
            self._config, length, length_bin, self._vocabulary, self._vocabulary_size, self._vocabulary_sha256
        )
        schema = examples_schema(self._vocabulary_size, metadata)
        name = examples_name(max_seq_length, length_bin, *shard)
        order = np.argsort(random_words(len(rows), self._config.seed, max_seq_length, shard, bin_number), kind="stable")
        counts = Counter(dict.fromkeys(COUNTS, 0))
        uri = storage.join(self._directory, name)
        with storage.atomic_output(uri) as stream, pa.ipc.new_file(stream, schema) as writer:
            for start in range(0, len(rows), EXAMPLES_PER_BATCH):
                taken = rows.take(pa.array(order[start : start + EXAMPLES_PER_BATCH])).combine_chunks()
                (batch,) = taken.replace_schema_metadata(schema.metadata).to_batches()
                writer.write_batch(batch)
                examples = examples_of(batch)
                counts.update(counts_of(examples, self._mask_id, self._unk_id))
                rows_by_length += rows_per_length(examples, max_seq_length)
        Metrics.counter(EXAMPLES, "examples").inc(counts["examples"])
        Metrics.counter(EXAMPLES, "tokens").inc(counts["tokens"])
        return record_of(self._directory, name, len(rows), counts)


def _collect(sources: list[pa.RecordBatchFileReader], bin_number: int, file: int, left_over: list[int]) -> pa.Table:
    """One file's rows of one bin: its portion of every shard, and its share of the rows left over."""
    first = bin_number * (len(sources) + 1)
    batches = [source.get_batch(first + file) for source in sources]
    for source, rows in zip(sources, left_over_rows(left_over, file, len(sources)), strict=True):
        if len(rows):
            batches.append(source.get_batch(first + len(sources)).take(pa.array(rows)))
    return pa.Table.from_batches(batches).combine_chunks()


class CompleteExamples(beam.DoFn):
    """All `WrittenFiles` -> `Manifest`: add up the statistics of each length and complete the stage."""

    def __init__(self, directory: str, key: StageKey, config: ExamplesConfig):
        self._result_directory = directory
        self._directory = building_directory(directory)
        self._key = key
        self._config = config

    def process(self, written: list[WrittenFiles], shards: list[ShardRows]) -> Iterator[Manifest]:
        # A runner may repeat this step although it went well; the build has taken its place by then.
        if is_open(self._result_directory):
            self._complete(written, shards)
        install_build(self._result_directory, self._key)
        yield require_manifest(self._result_directory, EXAMPLES, "pipelines.build_examples")

    def _complete(self, written: list[WrittenFiles], shards: list[ShardRows]) -> None:
        files = [file for one in written for file in one.files]
        rows_by_length: dict[int, NDArray[np.int64]] = {}
        for one in written:
            counted = np.array(one.rows_by_length)
            rows_by_length[one.max_seq_length] = rows_by_length.get(one.max_seq_length, 0) + counted
        statistics = stage_statistics(files, rows_by_length, shards, self._config)
        if refusal := refusal_of(statistics):
            raise InputError(refusal)
        write_manifest(self._directory, self._key.manifest(files, statistics, __version__))


def stage_statistics(
    files: list[FileRecord],
    rows_by_length: dict[int, NDArray[np.int64]],
    shards: list[ShardRows],
    config: ExamplesConfig,
) -> ExamplesStatistics:
    """The statistics of the manifest.

    Args:
        files: all files of the stage.
        rows_by_length: by maximum length: how many rows have 0, 1, ... tokens.
        shards: what was made of each documents shard.
    """
    lengths: dict[str, LengthStatistics] = {}
    for length in config.lengths:
        most = length.max_seq_length
        losses = {name: sum(shard.losses[most][name] for shard in shards) for name in LOSSES}
        lengths[str(most)] = summary_of(files, rows_by_length[most], most, config.num_length_bins, losses)
    documents = {split: sum(one.documents for one in shards if one.shard.split == split) for split in SPLITS}
    text = ExamplesText(
        train_documents=documents["train"],
        heldout_documents=documents["heldout"],
        **shares_of(added([TokenCounts(), *(shard.counts for shard in shards)])),
    )
    return ExamplesStatistics(lengths=lengths, text=text, warnings=warnings_of(lengths, text, config))
