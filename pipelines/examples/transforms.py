"""Transforms of job 3: shards of documents become files of examples.

`BuildShard` makes all rows of one documents shard and writes them in portions, one for each output file;
`BalanceShard` collects a file's portions from all shards and puts the rows in random order. Rows move through files,
not through the runner, so memory is bounded by one shard of documents and one file of examples on any runner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
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
from pipelines.contract.schemas import MASK, UNK, LengthBin, examples_schema, length_bins
from pipelines.contract.workspace import (
    DOCUMENTS,
    EXAMPLES,
    FILES_GROUP,
    ROWS_GROUP,
    TOKENS_GROUP,
    VOCABULARY,
    VOCABULARY_NAME,
    examples_name,
    shard_name,
)
from pipelines.examples.arrow_rows import EXAMPLES_PER_BATCH, examples_batch, examples_of
from pipelines.examples.balancing import group_of, left_over_rows
from pipelines.examples.losses import losses_of
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
from pipelines.examples.statistics import COUNTS, ShardRows, counts_of, rows_per_length, stage_statistics
from pipelines.examples.warnings import refusal_of
from pipelines.jobs.arrow_files import open_arrow, read_table
from pipelines.jobs.runner import limit_worker_threads
from pipelines.mixing.shares import Mixture
from pipelines.mixing.transforms import tokens_name, write_tokens
from pipelines.results.builds import install_build
from pipelines.results.marks import building_directory, is_open
from pipelines.results.unfinished import finish_unit, finished_unit, scratch_name, scratch_uri
from pipelines.settings.examples import ExamplesConfig, ExamplesPart
from pipelines.wordpiece.token_counts import TokenCounts
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.tokenizer_settings import TokenizerSettings


class FilesToWrite(NamedTuple):
    """The files of one directory (a maximum length of a set) and number, one per bin."""

    directory: str
    shard: ShardNumber


class WrittenFiles(NamedTuple):
    """What `BalanceShard` wrote, and how many of the rows have 0, 1, ... `max_seq_length` tokens."""

    directory: str
    files: list[FileRecord]
    rows_by_length: list[int]


class _TokenizesShards(beam.DoFn):
    """Reads and tokenises documents shards."""

    def __init__(self, directories: dict[str, str], config: ExamplesConfig, settings: TokenizerSettings):
        self._directories = directories
        self._config = config
        self._settings = settings

    def setup(self) -> None:
        limit_worker_threads()
        text = storage.read_bytes(storage.join(self._directories[VOCABULARY], VOCABULARY_NAME)).decode()
        self._tokens = text.split("\n")[:-1]
        self._tokenizer = WordPieceTokenizer(self._tokens, *self._settings)

    def _read(self, shard: ShardNumber) -> ShardText:
        name = storage.join(self._directories[DOCUMENTS], shard_name(*shard))
        return read_documents(read_table(name), self._tokenizer)


class CountTokens(_TokenizesShards):
    """`ShardNumber` -> name of the shard: write the tokens of its documents, which mixtures depend on."""

    def process(self, shard: ShardNumber) -> Iterator[str]:
        directory, name = self._directories[EXAMPLES], shard_name(*shard)
        unit = f"{TOKENS_GROUP}/{name}"
        if finished_unit(directory, unit) is None:
            write_tokens(directory, name, self._read(shard).tokens_of_sources(self._config.seed))
            finish_unit(directory, unit, {}, [scratch_name(tokens_name(name))])
        yield name


class BuildShard(_TokenizesShards):
    """`ShardNumber` -> `ShardRows`: make all rows of a documents shard and write them in portions.

    A scratch file holds one record batch for each bin and file, and after a bin's files one with the rows left over.
    """

    def process(self, shard: ShardNumber, mixtures: list[dict[str, Mixture]] | None = None) -> Iterator[ShardRows]:
        directory, unit = self._directories[EXAMPLES], f"{ROWS_GROUP}/{shard_name(*shard)}"
        record, parts = finished_unit(directory, unit), self._config.parts()
        if record is None:
            text = self._read(shard)
            mixture_of_set = mixtures[0] if mixtures else {}
            record = {
                "lengths": [self._write_rows(text, shard, part, mixture_of_set.get(part.name or "")) for part in parts],
                "documents": len(text.sources),
                "counts": list(text.counts),
            }
            finish_unit(directory, unit, record, [scratch_name(rows_name(part.directory, shard)) for part in parts])
        names = [part.directory for part in parts]
        rows, losses = (dict(zip(names, column, strict=True)) for column in zip(*record["lengths"], strict=True))
        yield ShardRows(shard, rows, losses, record["documents"], TokenCounts(*record["counts"]))

    def _write_rows(
        self, text: ShardText, shard: ShardNumber, part: ExamplesPart, mixture: Mixture | None
    ) -> tuple[list[int], dict[str, int]]:
        """Write the rows of one length: how many each bin has, and what was lost."""
        config, most = part.config, part.length.max_seq_length
        text = text.mixed(shard.split, config, mixture)
        documents = text.documents
        plan, dealt = deal_shard(text, shard, config, most)
        losses = losses_of(documents, text.sources, plan, config.passes, most, text.times)
        rules = masking_rules(config, part.length, self._tokens)
        schema = examples_schema(len(self._tokens), {})
        uri = scratch_uri(self._directories[EXAMPLES], rows_name(part.directory, shard))
        with storage.atomic_output(uri) as stream, pa.ipc.new_file(stream, schema) as writer:
            for portions in dealt:
                for rows in portions:
                    examples = build_examples(documents.input_ids, plan.take(rows), rules)
                    writer.write_batch(examples_batch(examples, schema))
        return [sum(map(len, portions)) for portions in dealt], losses


def rows_name(directory: str, shard: ShardNumber) -> str:
    """Scratch file to which `BuildShard` writes the rows of a shard that go to a directory."""
    return f"{ROWS_GROUP}/{directory}/{shard_name(*shard)}"


class BalanceShard(beam.DoFn):
    """`FilesToWrite` -> `WrittenFiles`: collect a file's portions from all shards of its group, in random order."""

    def __init__(
        self, directory: str, config: ExamplesConfig, settings: TokenizerSettings, tokens: list[str], sha256: str
    ):
        self._directory = directory
        self._parts = {part.directory: part for part in config.parts()}
        self._settings = settings
        self._vocabulary_size = len(tokens)
        self._mask_id, self._unk_id = tokens.index(MASK), tokens.index(UNK)
        self._vocabulary_sha256 = sha256

    def setup(self) -> None:
        limit_worker_threads()

    def process(self, target: FilesToWrite, shards: list[ShardRows]) -> Iterator[WrittenFiles]:
        directory, shard = target
        unit = f"{FILES_GROUP}/{directory}/{shard_name(*shard)}"
        record = finished_unit(self._directory, unit)
        if record is None:
            rows = {one.shard.number: one.rows[directory] for one in shards if one.shard.split == shard.split}
            written = self._write_files(target, [rows[number] for number in group_of(shard.number, shard.total)])
            record = [[file.model_dump(mode="json") for file in written.files], written.rows_by_length]
            finish_unit(self._directory, unit, record, [file.name for file in written.files])
        files, rows_by_length = record
        yield WrittenFiles(directory, [FileRecord.model_validate(file) for file in files], rows_by_length)

    def _write_files(self, target: FilesToWrite, rows_of_group: list[list[int]]) -> WrittenFiles:
        directory, shard = target
        part = self._parts[directory]
        max_seq_length = part.length.max_seq_length
        group = group_of(shard.number, shard.total)
        files: list[FileRecord] = []
        rows_by_length = np.zeros(max_seq_length + 1, np.int64)
        with ExitStack() as stack:
            names = [rows_name(directory, shard._replace(number=number)) for number in group]
            sources = [stack.enter_context(open_arrow(scratch_uri(self._directory, name))) for name in names]
            for bin_number, length_bin in enumerate(length_bins(max_seq_length, part.config.num_length_bins)):
                left_over = [rows[bin_number] % len(group) for rows in rows_of_group]
                rows = _collect(sources, bin_number, group.index(shard.number), left_over)
                files.append(self._write_file(target, bin_number, length_bin, rows, rows_by_length))
        return WrittenFiles(directory, files, rows_by_length.tolist())

    def _write_file(
        self,
        target: FilesToWrite,
        bin_number: int,
        length_bin: LengthBin,
        rows: pa.Table,
        rows_by_length: NDArray[np.int64],
    ) -> FileRecord:
        """Write one file and add its rows to `rows_by_length`."""
        directory, shard = target
        _, config, length = self._parts[directory]
        max_seq_length = length.max_seq_length
        metadata = metadata_of(
            config, length, length_bin, self._settings, self._vocabulary_size, self._vocabulary_sha256
        )
        schema = examples_schema(self._vocabulary_size, metadata)
        name = examples_name(directory, length_bin, *shard)
        order = np.argsort(random_words(len(rows), config.seed, max_seq_length, shard, bin_number), kind="stable")
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

    def __init__(self, directory: str, key: StageKey, config: ExamplesConfig, remedy: str):
        self._result_directory = directory
        self._directory = building_directory(directory)
        self._key = key
        self._config = config
        self._remedy = remedy

    def process(
        self, written: list[WrittenFiles], shards: list[ShardRows], mixtures: list[dict[str, Mixture]] | None = None
    ) -> Iterator[Manifest]:
        # A runner may repeat this step after it succeeded, when the build is installed.
        if is_open(self._result_directory):
            self._complete(written, shards, mixtures[0] if mixtures else {})
        install_build(self._result_directory, self._key)
        yield require_manifest(self._result_directory, EXAMPLES, "pipelines.build_examples")

    def _complete(self, written: list[WrittenFiles], shards: list[ShardRows], mixtures: Mapping[str, Mixture]) -> None:
        files = [file for one in written for file in one.files]
        rows_by_length: dict[str, NDArray[np.int64]] = {}
        for one in written:
            counted = np.array(one.rows_by_length)
            rows_by_length[one.directory] = rows_by_length.get(one.directory, 0) + counted
        sources = {name: mixture.statistics for name, mixture in mixtures.items()}
        statistics = stage_statistics(files, rows_by_length, shards, self._config, sources, self._remedy)
        if refusal := refusal_of(statistics):
            raise InputError(refusal)
        write_manifest(self._directory, self._key.manifest(files, statistics, __version__))
