"""Check finished stages against their manifests: checksums, schemas, every row, and the statistics recomputed.

    python -m pipelines.validate workspaces/demo/examples
    python -m pipelines.validate workspaces/demo

Works on the directories of documents, vocabulary and examples, and on a workspace with all three. Exits with 1 at the
first fault and names the file and the row; with 2 where there is nothing to check.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from pipelines import storage
from pipelines.arrow_files import EXAMPLES_PER_BATCH, examples_of, read_table
from pipelines.balancing import group_of
from pipelines.command_line import CommandParser
from pipelines.config import DocumentsConfig, ExamplesConfig, VocabularyConfig
from pipelines.contract import (
    DOCUMENTS_SCHEMA,
    MASK,
    SPECIAL_TOKENS,
    SPLITS,
    TOKENIZER_NAME,
    VOCABULARY_NAME,
    FileRecord,
    Manifest,
    examples_name,
    examples_schema,
    length_bins,
    read_manifest,
    require_manifest,
    shard_name,
    verify_file,
)
from pipelines.documents import document_id, shard_number, shards_of
from pipelines.example_checks import first_fault
from pipelines.example_statistics import COUNTS, counts_of, rows_per_length, summary_of
from pipelines.examples import metadata_of
from pipelines.recipe import InputError, exit_code_of
from pipelines.rejects import REJECTS_NAME
from pipelines.stages import DOCUMENTS, EXAMPLES, VOCABULARY

_COMMANDS = {DOCUMENTS: "shard_corpus", VOCABULARY: "train_vocabulary", EXAMPLES: "build_examples"}


class FaultError(InputError):
    """A file that is not what its manifest says."""


def validate(directory: str) -> list[str]:
    """Check a stage's directory, or all stages of a workspace, and say in one line a stage what was found in order.

    Raises:
        InputError: there is no complete stage here.
        FaultError: a file, a row or a statistic is wrong; the line names the file and, where there is one, the row.
    """
    manifest = read_manifest(directory)
    if manifest is not None:
        return [_validate_stage(directory, manifest)]
    stages = {stage: storage.join(directory, stage) for stage in _COMMANDS}
    if not any(read_manifest(uri) for uri in stages.values()):
        raise InputError(f"{directory}: neither a complete stage nor a workspace with one")
    return [
        _validate_stage(uri, require_manifest(uri, stage, f"python -m pipelines.{_COMMANDS[stage]}"))
        for stage, uri in stages.items()
    ]


def _validate_stage(directory: str, manifest: Manifest) -> str:
    checks: dict[str, Callable[[str, Manifest], None]] = {
        DOCUMENTS: _validate_documents,
        VOCABULARY: _validate_vocabulary,
        EXAMPLES: _validate_examples,
    }
    if manifest.stage not in checks:
        raise InputError(f"{directory}: holds the stage {manifest.stage!r}; this command checks {', '.join(checks)}")
    for file in manifest.files:
        if storage.file_size_bytes(storage.join(directory, file.name)) is None:
            raise FaultError(f"{directory}/{file.name}: missing, though the manifest lists it")
    # Rows first: where a file is damaged, the row that shows it says more than the checksum.
    checks[manifest.stage](directory, manifest)
    for file in manifest.files:
        try:
            verify_file(directory, file)
        except InputError as error:
            raise FaultError(str(error)) from error
    rows = sum(file.rows for file in manifest.files)
    return f"{directory}: {manifest.stage} in order: {len(manifest.files)} files, {rows} rows"


def _validate_documents(directory: str, manifest: Manifest) -> None:
    config = DocumentsConfig.model_validate(manifest.config)
    names = {(split, index): shard_name(split, index, count) for split, index, count in shards_of(config)}
    shards = [file for file in manifest.files if file.name.endswith(".arrow")]
    _compare_names(directory, shards, list(names.values()))
    found: Counter[str] = Counter()
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
        counts = {"sentences": len(texts), "characters": int(pc.sum(pc.utf8_length(texts)).as_py() or 0)}
        for name, count in counts.items():
            _compare(f"{directory}/{file.name}", name, file.statistics.get(name), count)
        found.update(counts)
        found.update({"documents_kept": table.num_rows, f"{file.name.partition('-')[0]}_documents": table.num_rows})
    rejected = _count_rejects(directory, manifest)
    found.update({"documents_rejected": sum(rejected.values())})
    found["documents_read"] = found["documents_kept"] + found["documents_rejected"]
    stated = {"train_documents": 0, "heldout_documents": 0} | manifest.statistics
    for name in sorted(found):
        _compare(directory, name, stated.get(name), found[name])
    _compare(directory, "rejected_by_reason", manifest.statistics.get("rejected_by_reason"), dict(rejected))


def _count_rejects(directory: str, manifest: Manifest) -> Counter[str]:
    """The lines of the rejects' file by reason."""
    (file,) = (file for file in manifest.files if file.name == REJECTS_NAME)
    where = f"{directory}/{file.name}"
    reasons: Counter[str] = Counter()
    filesystem, path = storage.filesystem_of(storage.join(directory, file.name))
    try:
        with filesystem.open_input_stream(path, compression=None) as stream, gzip.open(stream) as lines:
            for line in lines:
                reasons[json.loads(line)["reason"]] += 1
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        row = sum(reasons.values())
        raise FaultError(f"{where}, row {row}: no JSON with a reason, or the file is cut ({error})") from error
    _compare(where, "rows", file.rows, sum(reasons.values()))
    return reasons


def _validate_vocabulary(directory: str, manifest: Manifest) -> None:
    where = f"{directory}/{VOCABULARY_NAME}"
    tokens = _tokens_of(directory)
    seen: dict[str, int] = {}
    for row, token in enumerate(tokens):
        if not token or token != token.strip():
            raise FaultError(f"{where}, row {row}: {token!r} is no token")
        if seen.setdefault(token, row) != row:
            raise FaultError(f"{where}, row {row}: {token!r} stands already in row {seen[token]}")
    for token in SPECIAL_TOKENS:
        if token not in seen:
            raise FaultError(f"{where}: has no {token}")
    for file in manifest.files:
        _compare(f"{directory}/{file.name}", "rows", file.rows, len(tokens))
    _compare(directory, "size", manifest.statistics.get("size"), len(tokens))
    if len(tokens) > manifest.config["size"]:
        raise FaultError(f"{where}: {len(tokens)} tokens, more than size = {manifest.config['size']}")
    where = f"{directory}/{TOKENIZER_NAME}"
    try:
        tokenizer = Tokenizer.from_str(storage.read_bytes(storage.join(directory, TOKENIZER_NAME)).decode())
    except Exception as error:  # The library raises nothing narrower.
        raise FaultError(f"{where}: not a tokenizer ({error})") from error
    ids = tokenizer.get_vocab()
    for row, token in enumerate(tokens):
        if ids.get(token) != row:
            raise FaultError(f"{where}: {token!r} has the id {ids.get(token)}, in {VOCABULARY_NAME} it is row {row}")
    _compare(where, "tokens", len(tokens), len(ids))


def _validate_examples(directory: str, manifest: Manifest) -> None:
    config = ExamplesConfig.model_validate(manifest.config)
    vocabulary_directory = storage.join(directory.rstrip("/").rpartition("/")[0] or ".", VOCABULARY)
    vocabulary = require_manifest(vocabulary_directory, VOCABULARY, "python -m pipelines.train_vocabulary")
    casing = VocabularyConfig.model_validate(vocabulary.config)
    tokens = _tokens_of(vocabulary_directory)
    sha256 = storage.sha256_of(storage.join(vocabulary_directory, VOCABULARY_NAME))
    records = {file.name: file for file in manifest.files}
    totals = {split: _num_files(manifest, split) for split in SPLITS}
    expected: list[str] = []
    lengths: dict[str, Any] = {}
    for length in config.lengths:
        most = length.max_seq_length
        rows_by_length = np.zeros(most + 1, np.int64)
        for length_bin in length_bins(most, config.num_length_bins):
            metadata = metadata_of(config, length, length_bin, casing, len(tokens), sha256)
            schema = examples_schema(len(tokens), metadata)
            for split, total in totals.items():
                names = [examples_name(most, length_bin, split, number, total) for number in range(total)]
                expected += names
                for name in names:
                    if name in records:
                        rows_by_length += _check_examples(directory, records[name], schema, metadata, tokens)
                _check_balance(directory, [records[name] for name in names if name in records])
        lengths[str(most)] = summary_of(manifest.files, rows_by_length, most, config.num_length_bins)
    _compare_names(directory, list(manifest.files), expected)
    for most_text, summary in lengths.items():
        for key in sorted({*summary, *manifest.statistics["lengths"][most_text]}):
            stated = manifest.statistics["lengths"][most_text].get(key)
            _compare(directory, f"lengths.{most_text}.{key}", stated, summary.get(key))


def _num_files(manifest: Manifest, split: str) -> int:
    """How many files of a split each length and bin has, as the first of their names says."""
    names = [file.name for file in manifest.files if f"/{split}-" in file.name]
    return int(names[0].removesuffix(".arrow").rpartition("-")[2]) if names else 0


def _check_examples(
    directory: str, file: FileRecord, schema: pa.Schema, metadata: dict[str, str], tokens: list[str]
) -> Any:
    """Check the rows of one file; returns how many have 0, 1, ... `max_seq_length` tokens."""
    where, max_seq_length = f"{directory}/{file.name}", int(metadata["max_seq_length"])
    rows_by_length = np.zeros(max_seq_length + 1, np.int64)
    counts = Counter(dict.fromkeys(COUNTS, 0))
    first_row = 0
    for batch in _table_of(directory, file, schema).to_batches(EXAMPLES_PER_BATCH):
        examples = examples_of(batch)
        if fault := first_fault(examples, metadata, tokens):
            raise FaultError(f"{where}, row {first_row + fault[0]}: {fault[1]}")
        counts.update(counts_of(examples, tokens.index(MASK)))
        rows_by_length += rows_per_length(examples, max_seq_length)
        first_row += batch.num_rows
    for name, count in counts.items():
        _compare(where, name, file.statistics.get(name), count)
    return rows_by_length


def _check_balance(directory: str, files: list[FileRecord]) -> None:
    """Files that exchanged rows differ by at most one row."""
    for number, file in enumerate(files):
        first = files[group_of(number, len(files)).start]
        if not -1 <= file.rows - first.rows <= 1:
            raise FaultError(f"{directory}/{file.name}: {file.rows} rows where {first.name} has {first.rows}")


def _tokens_of(vocabulary_directory: str) -> list[str]:
    uri = storage.join(vocabulary_directory, VOCABULARY_NAME)
    try:
        lines = storage.read_bytes(uri).decode().split("\n")
    except UnicodeDecodeError as error:
        raise FaultError(f"{uri}: not UTF-8 ({error})") from error
    if lines[-1]:
        raise FaultError(f"{uri}, row {len(lines) - 1}: no line end")
    return lines[:-1]


def _table_of(directory: str, file: FileRecord, schema: pa.Schema) -> pa.Table:
    where = f"{directory}/{file.name}"
    try:
        table = read_table(storage.join(directory, file.name))
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise FaultError(f"{where}: not a sound Arrow file ({error})") from error
    if not table.schema.equals(schema):
        raise FaultError(f"{where}: its schema is not the contract's")
    found, expected = table.schema.metadata or {}, schema.metadata or {}
    for key in sorted({*found, *expected}):
        if found.get(key) != expected.get(key):
            raise FaultError(
                f"{where}: its metadata {key.decode()} is {_text(found.get(key))}, by the manifests it should be "
                f"{_text(expected.get(key))}"
            )
    _compare(where, "rows", file.rows, table.num_rows)
    return table


def _text(value: bytes | None) -> str:
    return "absent" if value is None else repr(value.decode(errors="replace"))


def _compare(where: str, name: str, stated: object, found: object) -> None:
    if stated != found:
        raise FaultError(f"{where}: the manifest states {name} = {stated}, the files give {found}")


def _compare_names(directory: str, files: list[FileRecord], expected: list[str]) -> None:
    for name in sorted({file.name for file in files} ^ set(expected)):
        what = "is missing from the manifest" if name in expected else "is no file that this stage writes"
        raise FaultError(f"{directory}/{name}: {what}")


def main() -> int:
    parser = CommandParser(
        prog="python -m pipelines.validate",
        description=__doc__,
        epilog="example: python -m pipelines.validate workspaces/demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", help="a finished stage, such as workspaces/demo/examples, or a workspace")
    arguments = parser.parse_args()
    try:
        for line in validate(arguments.directory):
            print(line)
    except FaultError as fault:
        print(f"fault: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
