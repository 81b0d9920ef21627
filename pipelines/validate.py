"""Check a finished stage against its manifest: checksums, schema, every row, and the statistics recomputed.

    python -m pipelines.validate workspaces/demo/examples

Works on the directories of the documents and the examples stage. Exits with 1 at the first fault, naming file and row.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import storage
from pipelines.arrow_files import read_table
from pipelines.config import DocumentsConfig
from pipelines.contract import (
    CLS,
    DOCUMENTS_SCHEMA,
    MASK,
    SEP,
    SPECIAL_TOKENS,
    VOCABULARY_NAME,
    FileRecord,
    Manifest,
    examples_schema,
    require_manifest,
    shard_name,
    verify_file,
)
from pipelines.documents import document_id, shard_number, shards_of
from pipelines.examples import flat_positions, statistics_of, summary_of_lengths
from pipelines.masking import MaskedExamples, num_predictions
from pipelines.recipe import InputError, exit_code_of
from pipelines.stages import DOCUMENTS, EXAMPLES, VOCABULARY


class FaultError(InputError):
    """A file that is not what its manifest says."""


def validate(directory: str) -> str:
    """Check a stage's directory and say in one line what was found in order.

    Raises:
        InputError: there is no complete stage, or a file is damaged.
        FaultError: a row or a statistic is wrong; the line names the file and the row.
    """
    manifest = require_manifest(directory, "the stage")
    checks = {DOCUMENTS: _validate_documents, EXAMPLES: _validate_examples}
    if manifest.stage not in checks:
        raise InputError(f"{directory}: holds the stage {manifest.stage!r}; this command checks {' and '.join(checks)}")
    for file in manifest.files:
        verify_file(directory, file)
    checks[manifest.stage](directory, manifest)
    rows = sum(file.rows for file in manifest.files)
    return f"{directory}: {manifest.stage} in order: {len(manifest.files)} files, {rows} rows"


def _validate_documents(directory: str, manifest: Manifest) -> None:
    config = DocumentsConfig.model_validate(manifest.config)
    names = {(split, index): shard_name(split, index, count) for split, index, count in shards_of(config)}
    shards = [file for file in manifest.files if file.name.endswith(".arrow")]
    for file in shards:
        table = _table_of(directory, file, DOCUMENTS_SCHEMA)
        previous = b""
        for row, (doc_id, sentences) in enumerate(
            zip(table["doc_id"].to_pylist(), table["sentences"].to_pylist(), strict=True)
        ):
            where = f"{directory}/{file.name}, row {row}"
            if doc_id != document_id(sentences):
                raise FaultError(f"{where}: doc_id is not the hash of the sentences")
            if doc_id <= previous:
                raise FaultError(f"{where}: doc_id is not greater than the one before")
            split, number = shard_number(doc_id, config.heldout_share, config.num_shards)
            if names[split, number] != file.name:
                raise FaultError(f"{where}: belongs to {names[split, number]} by its hash")
            previous = doc_id
        texts = table["sentences"].combine_chunks().flatten()
        _compare(f"{directory}/{file.name}", "sentences", file.statistics["sentences"], len(texts))
    _compare(directory, "documents_kept", manifest.statistics["documents_kept"], sum(file.rows for file in shards))


def _validate_examples(directory: str, manifest: Manifest) -> None:
    vocabulary_uri = storage.join(directory.rstrip("/").rpartition("/")[0] or ".", VOCABULARY, VOCABULARY_NAME)
    tokens = storage.read_bytes(vocabulary_uri).decode().split("\n")[:-1]
    sha256 = storage.sha256_of(vocabulary_uri)
    for file in manifest.files:
        where = f"{directory}/{file.name}"
        metadata = _metadata_of(directory, file)
        if metadata["vocabulary_sha256"] != sha256:
            raise FaultError(f"{where}: was made with another vocabulary than {vocabulary_uri}")
        table = _table_of(directory, file, examples_schema(len(tokens), metadata))
        examples = arrays_of(table)
        _check_rows(where, examples, metadata, tokens)
        found = statistics_of(examples, tokens.index(MASK))
        for name, value in found.items():
            _compare(where, name, file.statistics[name], value)
    lengths = summary_of_lengths(list(manifest.files), [int(length) for length in manifest.statistics["lengths"]])
    _compare(directory, "lengths", manifest.statistics["lengths"], lengths)


def arrays_of(table: pa.Table) -> MaskedExamples:
    """The columns of an examples table as flat arrays."""
    columns = {name: table[name].combine_chunks() for name in table.column_names}

    def flat(name: str) -> NDArray[Any]:
        return columns[name].flatten().to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]

    def offsets(name: str) -> NDArray[np.int64]:
        raw = columns[name].offsets.to_numpy().astype(np.int64)
        return raw - raw[0] if len(raw) else np.zeros(1, np.int64)

    return MaskedExamples(
        input_ids=flat("input_ids").astype(np.int32),
        offsets=offsets("input_ids"),
        segment_b_start=columns["segment_b_start"].to_numpy(),
        masked_lm_positions=flat("masked_lm_positions"),
        masked_lm_ids=flat("masked_lm_ids").astype(np.int32),
        masked_lm_offsets=offsets("masked_lm_positions"),
        next_sentence_label=columns["next_sentence_label"].to_numpy(),
    )


def _check_rows(where: str, examples: MaskedExamples, metadata: dict[str, str], tokens: list[str]) -> None:
    ids, starts = examples.input_ids, examples.offsets[:-1]
    lengths, per_row = np.diff(examples.offsets), np.diff(examples.masked_lm_offsets)
    cls_id, sep_id = tokens.index(CLS), tokens.index(SEP)
    rows_of_predictions = np.repeat(np.arange(len(lengths)), per_row)
    positions, places = examples.masked_lm_positions.astype(np.int64), flat_positions(examples)
    ends = lengths[rows_of_predictions]
    most, prob = int(metadata["max_predictions_per_seq"]), float(metadata["masked_lm_prob"])
    expected = np.array([num_predictions(length, prob, most) for length in range(int(metadata["max_seq_length"]) + 1)])
    ascending = np.diff(positions, prepend=-1) > 0
    ascending[examples.masked_lm_offsets[:-1][per_row > 0]] = True

    def require(what: str, right: NDArray[np.bool_], rows: NDArray[Any] | None = None) -> None:
        wrong = np.flatnonzero(~right)
        if len(wrong):
            raise FaultError(f"{where}, row {wrong[0] if rows is None else rows[wrong[0]]}: {what}")

    require("longer than max_seq_length", lengths <= int(metadata["max_seq_length"]))
    require("shorter than the five tokens of the smallest pair", lengths >= 5)
    require("an id is not in the vocabulary", ids < len(tokens), np.repeat(np.arange(len(lengths)), lengths))
    require("next_sentence_label is neither 0 nor 1", examples.next_sentence_label <= 1)
    inside = (examples.segment_b_start >= 3) & (examples.segment_b_start < lengths - 1)
    require("segment_b_start leaves a segment without a token", inside)
    require("does not begin with [CLS]", ids[starts] == cls_id)
    require("does not end with [SEP]", ids[examples.offsets[1:] - 1] == sep_id)
    require("segment A does not end with [SEP]", ids[starts + examples.segment_b_start - 1] == sep_id)
    if metadata["masking"] == "whole-word":
        require("more masked_lm_positions than masked_lm_prob asks for", per_row <= expected[lengths])
    else:
        require("the number of masked_lm_positions is not what masked_lm_prob asks for", per_row == expected[lengths])
    require("masked_lm_positions are not ascending", ascending, rows_of_predictions)
    require("a masked position lies outside the text", (positions > 0) & (positions < ends - 1), rows_of_predictions)
    separators = examples.segment_b_start[rows_of_predictions].astype(np.int64) - 1
    require("a [SEP] is masked", positions != separators, rows_of_predictions)
    special = np.isin(examples.masked_lm_ids, [tokens.index(token) for token in SPECIAL_TOKENS if token != "[UNK]"])
    require("a special token is predicted", ~special, rows_of_predictions)
    assert len(places) == len(positions)


def _table_of(directory: str, file: FileRecord, schema: pa.Schema) -> pa.Table:
    where = f"{directory}/{file.name}"
    table = read_table(storage.join(directory, file.name))
    if not table.schema.equals(schema):
        raise FaultError(f"{where}: its schema is not the contract's")
    _compare(where, "rows", file.rows, table.num_rows)
    return table


def _metadata_of(directory: str, file: FileRecord) -> dict[str, str]:
    raw = read_table(storage.join(directory, file.name)).schema.metadata or {}
    return {key.decode().removeprefix("clozeworks."): value.decode() for key, value in raw.items()}


def _compare(where: str, name: str, stated: object, found: object) -> None:
    if stated != found:
        raise FaultError(f"{where}: the manifest states {name} = {stated}, the files give {found}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.validate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", help="directory of a finished stage, such as workspaces/demo/examples")
    arguments = parser.parse_args()
    try:
        print(validate(arguments.directory))
    except FaultError as fault:
        print(f"fault: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
