"""Check the examples stage: every row, and the statistics recomputed from rows, documents and vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError

from pipelines.contract import storage
from pipelines.contract.manifest import FileRecord, Manifest, require_manifest
from pipelines.contract.schemas import (
    MASK,
    SPECIAL_TOKENS,
    SPLITS,
    UNK,
    documents_schema,
    examples_schema,
    length_bins,
)
from pipelines.contract.workspace import DOCUMENTS, MANIFEST_NAME, VOCABULARY, VOCABULARY_NAME, examples_name
from pipelines.examples.arrow_rows import EXAMPLES_PER_BATCH, examples_of
from pipelines.examples.balancing import group_of
from pipelines.examples.checks import first_fault
from pipelines.examples.losses import LOSSES, losses_of
from pipelines.examples.planning import ShardNumber, metadata_of, plan_examples, read_documents
from pipelines.examples.statistics import COUNTS, ShardRows, counts_of, rows_per_length, stage_statistics
from pipelines.examples.warnings import unk_remedy
from pipelines.mixing.shares import Mixture, SourceTokens, mixed_sets, mixture_of
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.examples import ExamplesConfig
from pipelines.statistics.preprocessing import SourceStatistics
from pipelines.validation.faults import FaultError, compare, compare_names, config_of, settings_of, table_of, tokens_of
from pipelines.validation.manifests import sibling, stated
from pipelines.wordpiece.token_counts import TokenCounts
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.tokenizer_settings import TokenizerSettings


def validate_examples(directory: str, manifest: Manifest) -> None:
    """Check the rows of all files, and what the manifest states about them.

    Raises:
        InputError: the vocabulary is not next to the examples.
        FaultError: a row, a file or a statistic is wrong.
    """
    config = config_of(directory, manifest, ExamplesConfig)
    vocabulary_directory = sibling(directory, VOCABULARY)
    vocabulary = require_manifest(vocabulary_directory, VOCABULARY, "clozeworks vocabulary")
    settings = settings_of(vocabulary_directory)
    tokens = tokens_of(vocabulary_directory)
    for token in SPECIAL_TOKENS:
        if token not in tokens:
            raise FaultError(f"{vocabulary_directory}/{VOCABULARY_NAME}: has no {token}")
    rows_by_length = _check_files(directory, manifest, config, settings, tokens)
    planned = _planned_shards(directory, manifest, config, settings, tokens)
    if planned is None:
        _compare_without_documents(directory, manifest, config, rows_by_length, unk_remedy(vocabulary))
        return
    shards, mixtures = planned
    _compare_totals(directory, manifest, config, shards)
    sources = {name: mixture.statistics for name, mixture in mixtures.items()}
    found = stage_statistics(
        list(manifest.files), rows_by_length, shards, config, sources, unk_remedy(vocabulary)
    ).to_json()
    _compare_statistics(directory, manifest.statistics, found)


def _check_files(
    directory: str, manifest: Manifest, config: ExamplesConfig, settings: TokenizerSettings, tokens: list[str]
) -> dict[str, NDArray[np.int64]]:
    """Check the files; returns, by directory, how many rows have 0, 1, ... tokens."""
    sha256 = storage.sha256_of(storage.join(sibling(directory, VOCABULARY), VOCABULARY_NAME))
    records = {file.name: file for file in manifest.files}
    totals = {split: _num_files(manifest, split) for split in SPLITS}
    expected: list[str] = []
    by_length: dict[str, NDArray[np.int64]] = {}
    for part in config.parts():
        most = part.length.max_seq_length
        by_length[part.directory] = np.zeros(most + 1, np.int64)
        for length_bin in length_bins(most, part.config.num_length_bins):
            metadata = metadata_of(part.config, part.length, length_bin, settings, len(tokens), sha256)
            schema = examples_schema(len(tokens), metadata)
            for split, total in totals.items():
                names = [examples_name(part.directory, length_bin, split, number, total) for number in range(total)]
                expected += names
                for name in names:
                    if name in records:
                        by_length[part.directory] += _check_rows(directory, records[name], schema, metadata, tokens)
                _check_balance(directory, [records[name] for name in names if name in records])
    compare_names(directory, list(manifest.files), expected)
    return by_length


def _num_files(manifest: Manifest, split: str) -> int:
    """Number of files of a split per length and bin, from the first of their names; 0 if it has no number."""
    names = [file.name for file in manifest.files if f"/{split}-" in file.name]
    number = names[0].removesuffix(".arrow").rpartition("-")[2] if names else ""
    # At most the number of files: a damaged number may have any value.
    return min(int(number), len(manifest.files)) if number.isdecimal() and len(number) < 9 else 0


def _check_rows(
    directory: str, file: FileRecord, schema: pa.Schema, metadata: dict[str, str], tokens: list[str]
) -> NDArray[np.int64]:
    """Check the rows of one file; returns how many have 0, 1, ... `max_seq_length` tokens."""
    where, max_seq_length = f"{directory}/{file.name}", int(metadata["max_seq_length"])
    rows_by_length = np.zeros(max_seq_length + 1, np.int64)
    counts = Counter(dict.fromkeys(COUNTS, 0))
    mask_id, unk_id = tokens.index(MASK), tokens.index(UNK)
    first_row = 0
    for batch in table_of(directory, file, schema).to_batches(EXAMPLES_PER_BATCH):
        sizes = [pc.list_value_length(batch[name]) for name in ("masked_lm_positions", "masked_lm_ids")]
        if not sizes[0].equals(sizes[1]):
            row = pc.index(pc.not_equal(*sizes), True).as_py()
            raise FaultError(f"{where}, row {first_row + row}: not one masked_lm_id for each masked position")
        examples = examples_of(batch)
        if fault := first_fault(examples, metadata, tokens):
            raise FaultError(f"{where}, row {first_row + fault[0]}: {fault[1]}")
        counts.update(counts_of(examples, mask_id, unk_id))
        rows_by_length += rows_per_length(examples, max_seq_length)
        first_row += batch.num_rows
    for name in sorted({*counts, *file.statistics}):
        compare(where, name, file.statistics.get(name), counts.get(name))
    return rows_by_length


def _check_balance(directory: str, files: list[FileRecord]) -> None:
    """Files that exchanged rows differ by at most one row."""
    for number, file in enumerate(files):
        first = files[group_of(number, len(files)).start]
        if not -1 <= file.rows - first.rows <= 1:
            raise FaultError(f"{directory}/{file.name}: {file.rows} rows where {first.name} has {first.rows}")


def _planned_shards(
    directory: str, manifest: Manifest, config: ExamplesConfig, settings: TokenizerSettings, tokens: list[str]
) -> tuple[list[ShardRows], dict[str, Mixture]] | None:
    """Cut the documents next to the examples into rows again; None if they are absent or not the inputs."""
    source = sibling(directory, DOCUMENTS)
    documents = stated(source)
    if documents is None or documents.digest != manifest.inputs.get(DOCUMENTS):
        return None
    tokenizer = WordPieceTokenizer(tokens, *settings)
    schema = documents_schema(config_of(source, documents, DocumentsConfig).source_names)

    def training_tokens() -> Iterator[SourceTokens]:
        for file in documents.files_of("train"):
            yield read_documents(table_of(source, file, schema), tokenizer).tokens_of_sources(config.seed)

    mixtures = {name: mixture_of(of_set, training_tokens) for name, of_set in mixed_sets(config).items()}
    shards = []
    for split in SPLITS:
        files = documents.files_of(split)
        for number, file in enumerate(files):
            text = read_documents(table_of(source, file, schema), tokenizer)
            rows, losses = {}, {}
            for part in config.parts():
                most, name = part.length.max_seq_length, part.directory
                mixed = text.mixed(split, part.config, mixtures.get(part.name or ""))
                plan = plan_examples(mixed.documents, part.config, most, mixed.times)
                rows[name] = [len(plan.keys), int(plan.lengths.sum()), int(plan.next_sentence_label.sum())]
                losses[name] = losses_of(mixed.documents, mixed.sources, plan, part.config.passes, most, mixed.times)
            shard = ShardNumber(split, number, len(files))
            shards.append(ShardRows(shard, rows, losses, len(text.sources), text.counts))
    return shards, mixtures


def _compare_totals(directory: str, manifest: Manifest, config: ExamplesConfig, shards: list[ShardRows]) -> None:
    """Check that the files of each length and split hold the rows, tokens and labels that the documents give."""
    for part in config.parts():
        for split in SPLITS:
            files = manifest.files_of(split, part.directory)
            of_split = [shard.rows[part.directory] for shard in shards if shard.shard.split == split]
            for place, name in enumerate(("examples", "tokens", "random_next")):
                have = sum(file.statistics[name] for file in files)
                given = sum(rows[place] for rows in of_split)
                if have != given:
                    raise FaultError(
                        f"{directory}/{part.directory}: {have:,} {name} in the files of {split}, where the documents "
                        f"give {given:,} with the settings of {MANIFEST_NAME} (passes = {part.config.passes}, "
                        f"short_seq_prob = {config.short_seq_prob}, seed = {config.seed})"
                    )


def _compare_without_documents(
    directory: str,
    manifest: Manifest,
    config: ExamplesConfig,
    rows_by_length: dict[str, NDArray[np.int64]],
    remedy: str,
) -> None:
    """Check what the rows alone give, with the manifest's figures about the documents."""
    text = _mapping(directory, manifest.statistics, "text")
    losses: dict[str, dict[str, int]] = {}
    for part in config.parts():
        lengths = _mapping(directory, _of_set(directory, manifest.statistics, part.name), "lengths")
        facts = _mapping(directory, lengths, str(part.length.max_seq_length))
        losses[part.directory] = {name: _count(directory, facts, name) for name in LOSSES}
    counts = TokenCounts(*(_count(directory, text, name) for name in TokenCounts._fields))
    shards = []
    for split in SPLITS:
        documents = _count(directory, text, f"{split}_documents")
        is_first = split == SPLITS[0]
        nothing = {name: dict.fromkeys(LOSSES, 0) for name in losses}
        shard = ShardNumber(split, 0, 1)
        shards.append(
            ShardRows(shard, {}, losses if is_first else nothing, documents, counts if is_first else TokenCounts())
        )
    # Shares cannot be computed without the documents.
    sources = {name: _sources(directory, manifest.statistics, name or None) for name in mixed_sets(config)}
    found = stage_statistics(list(manifest.files), rows_by_length, shards, config, sources, remedy).to_json()
    _compare_statistics(directory, manifest.statistics, found)


def _of_set(directory: str, statistics: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    return statistics if name is None else _mapping(directory, _mapping(directory, statistics, "sets"), name)


def _sources(directory: str, statistics: Mapping[str, Any], name: str | None) -> dict[str, SourceStatistics]:
    stated_ones = _mapping(directory, _of_set(directory, statistics, name), "sources")
    try:
        return {source: SourceStatistics.model_validate(facts) for source, facts in stated_ones.items()}
    except ValidationError as error:
        raise FaultError(f"{directory}/{MANIFEST_NAME}: statistics: sources: {error.errors()[0]['msg']}") from error


def _mapping(directory: str, values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    if not isinstance(value, Mapping):
        raise FaultError(f"{directory}/{MANIFEST_NAME}: statistics has no {name}")
    return value


def _count(directory: str, values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FaultError(f"{directory}/{MANIFEST_NAME}: statistics: {name} = {value!r} is not a count")
    return value


def _compare_statistics(directory: str, stated_ones: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compare all statistics, those of each length and of the text one by one."""
    for group in sorted({*stated_ones, *found} - {"lengths", "text"}):
        _compare_nested(directory, group, stated_ones.get(group), found.get(group))
    nested = {"text": found["text"], **{f"lengths.{length}": facts for length, facts in found["lengths"].items()}}
    lengths = _mapping(directory, stated_ones, "lengths")
    compare(directory, "lengths", sorted(lengths), sorted(found["lengths"]))
    for group, facts in nested.items():
        own = _mapping(directory, lengths if group != "text" else stated_ones, group.removeprefix("lengths."))
        for name in sorted({*facts, *own}):
            compare(directory, f"{group}.{name}", own.get(name), facts.get(name))


def _compare_nested(directory: str, group: str, stated_one: Any, found: Any) -> None:
    """Compare statistics of sources and of sets value by value."""
    if not (isinstance(stated_one, Mapping) and isinstance(found, Mapping)):
        compare(directory, group, stated_one, found)
        return
    for name in sorted({*stated_one, *found}):
        _compare_nested(directory, f"{group}.{name}", stated_one.get(name), found.get(name))
