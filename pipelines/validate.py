"""Check finished stages against their manifests: checksums, schemas, every row, and the statistics recomputed.

    python -m pipelines.validate workspaces/demo/examples
    python -m pipelines.validate workspaces/demo

Works on the directories of documents, vocabulary and examples, and on a workspace with all three. Where the stages that
a stage was made from lie next to it, they have to be the ones that its manifest names, and its statistics are computed
from them again. Exits with 1 at the first fault and names the file and the row; with 2 where there is nothing to check.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable

import pyarrow.compute as pc
from tokenizers import Tokenizer

from pipelines.commands.command_line import CommandParser
from pipelines.contract import storage
from pipelines.contract.manifest import (
    DOCUMENTS_SCHEMA,
    SPECIAL_TOKENS,
    TOKENIZER_NAME,
    VOCABULARY_NAME,
    Manifest,
    shard_name,
    verify_file,
)
from pipelines.contract.recipe import InputError, exit_code_of
from pipelines.documents.document import document_id, shard_number, shards_of
from pipelines.documents.rejects import REJECTS_NAME
from pipelines.settings.documents import DocumentsConfig, VocabularyConfig
from pipelines.stage_keys import DOCUMENTS, EXAMPLES, VOCABULARY
from pipelines.validation.examples import validate_examples
from pipelines.validation.faults import FaultError, compare, compare_names, config_of, table_of, tokens_of
from pipelines.validation.manifests import COMMANDS, check_inputs, check_manifest, check_strays, sibling, stated
from pipelines.wordpiece.statistics import statistics_of
from pipelines.wordpiece.tokenizer import build_tokenizer
from pipelines.wordpiece.trainer import reserved_tokens, train
from pipelines.wordpiece.word_counts import count_words, marks_stripped, merge_counts


def validate(directory: str) -> list[str]:
    """Check a stage's directory, or all stages of a workspace, and say in one line a stage what was found in order.

    Where the stages that a stage was made from lie next to it, its statistics are computed from them again.

    Raises:
        InputError: there is no complete stage here.
        FaultError: a file, a row or a statistic is wrong; the line names the file and, where there is one, the row.
    """
    manifest = stated(directory)
    if manifest is not None:
        return [_validate_stage(directory, manifest)]
    lines = []
    stages = {stage: storage.join(directory, stage) for stage in COMMANDS}
    manifests = {stage: stated(uri) for stage, uri in stages.items()}
    if not any(manifests.values()):
        if storage.is_local(directory) and not os.path.isdir(storage.local_path(directory)):
            raise InputError(f"{directory}: no such directory; name a workspace or the directory of a stage")
        raise InputError(f"{directory}: neither a complete stage nor a workspace with one")
    for stage, uri in stages.items():
        manifest = manifests[stage]
        if manifest is None:
            raise InputError(
                f"{uri}: no manifest.json, so this stage is not complete; run python -m pipelines.{COMMANDS[stage]} "
                "first"
            )
        if manifest.stage != stage:
            raise FaultError(f"{uri}: holds the stage {manifest.stage!r}, not {stage!r}")
        lines.append(_validate_stage(uri, manifest))
    return lines


def _validate_stage(directory: str, manifest: Manifest) -> str:
    checks: dict[str, Callable[[str, Manifest], None]] = {
        DOCUMENTS: _validate_documents,
        VOCABULARY: _validate_vocabulary,
        EXAMPLES: validate_examples,
    }
    if manifest.stage not in checks:
        raise InputError(f"{directory}: holds the stage {manifest.stage!r}; this command checks {', '.join(checks)}")
    check_manifest(directory, manifest)
    # Rows first: where a file is damaged, the row that shows it says more than the checksum.
    checks[manifest.stage](directory, manifest)
    for file in manifest.files:
        try:
            verify_file(directory, file)
        except InputError as error:
            raise FaultError(str(error)) from error
    check_strays(directory, manifest)
    check_inputs(directory, manifest)
    rows = sum(file.rows for file in manifest.files)
    return f"{directory}: {manifest.stage} in order: {len(manifest.files)} files, {rows} rows"


def _validate_documents(directory: str, manifest: Manifest) -> None:
    config = config_of(directory, manifest, DocumentsConfig)
    names = {(split, index): shard_name(split, index, count) for split, index, count in shards_of(config)}
    shards = [file for file in manifest.files if file.name.endswith(".arrow")]
    compare_names(directory, list(manifest.files), [*names.values(), REJECTS_NAME])
    found: Counter[str] = Counter()
    for file in shards:
        table = table_of(directory, file, DOCUMENTS_SCHEMA)
        previous = b""
        for row, (doc_id, sentences) in enumerate(
            zip(table["doc_id"].to_pylist(), table["sentences"].to_pylist(), strict=True)
        ):
            where = f"{directory}/{file.name}, row {row}"
            if doc_id != document_id(sentences):
                raise FaultError(f"{where}: doc_id is not the hash of the sentences")
            if len(sentences) < config.min_sentences:
                raise FaultError(f"{where}: has {len(sentences)} sentences, fewer than {config.min_sentences}")
            if doc_id <= previous:
                raise FaultError(f"{where}: doc_id is not greater than the one before")
            split, number = shard_number(doc_id, config.heldout_share, config.num_shards)
            if names[split, number] != file.name:
                raise FaultError(f"{where}: belongs to {names[split, number]} by its hash")
            previous = doc_id
        texts = table["sentences"].combine_chunks().flatten()
        counts = {"sentences": len(texts), "characters": int(pc.sum(pc.utf8_length(texts)).as_py() or 0)}
        for name, count in counts.items():
            compare(f"{directory}/{file.name}", name, file.statistics.get(name), count)
        found.update(counts)
        found.update({"documents_kept": table.num_rows, f"{file.name.partition('-')[0]}_documents": table.num_rows})
    rejected = _count_rejects(directory, manifest)
    found.update({"documents_rejected": sum(rejected.values())})
    found["documents_read"] = found["documents_kept"] + found["documents_rejected"]
    stated = {"train_documents": 0, "heldout_documents": 0} | manifest.statistics
    for name in sorted(found):
        compare(directory, name, stated.get(name), found[name])
    compare(directory, "rejected_by_reason", manifest.statistics.get("rejected_by_reason"), dict(rejected))


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
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        row = sum(reasons.values())
        raise FaultError(f"{where}, row {row}: no JSON with a reason, or the file is cut ({error})") from error
    compare(where, "rows", file.rows, sum(reasons.values()))
    return reasons


def _validate_vocabulary(directory: str, manifest: Manifest) -> None:
    where = f"{directory}/{VOCABULARY_NAME}"
    config = config_of(directory, manifest, VocabularyConfig)
    records = {file.name: file for file in manifest.files}
    tokens = tokens_of(directory)
    seen: dict[str, int] = {}
    for row, token in enumerate(tokens):
        if not token or token != token.strip():
            raise FaultError(f"{where}, row {row}: {token!r} is no token")
        if seen.setdefault(token, row) != row:
            raise FaultError(f"{where}, row {row}: {token!r} stands already in row {seen[token]}")
    for token in SPECIAL_TOKENS:
        if token not in seen:
            raise FaultError(f"{where}: has no {token}")
    for name in (VOCABULARY_NAME, TOKENIZER_NAME):
        if name not in records:
            raise FaultError(f"{directory}/{name}: is missing from the manifest")
        compare(f"{directory}/{name}", "rows", records[name].rows, len(tokens))
    compare(directory, "size", manifest.statistics.get("size"), len(tokens))
    compare(directory, "config.size", config.size, len(tokens))
    for row, token in enumerate(reserved_tokens(config.layout)):
        if tokens[row] != token:
            raise FaultError(f"{where}, row {row}: {tokens[row]!r}, where layout = {config.layout!r} has {token!r}")
    _validate_tokenizer(directory, tokens, config)
    _retrain(directory, manifest, tokens, config)


def _validate_tokenizer(directory: str, tokens: list[str], config: VocabularyConfig) -> None:
    where = f"{directory}/{TOKENIZER_NAME}"
    try:
        tokenizer = Tokenizer.from_str(storage.read_bytes(storage.join(directory, TOKENIZER_NAME)).decode())
    except Exception as error:  # The library raises nothing narrower.
        raise FaultError(f"{where}: not a tokenizer ({error})") from error
    ids = tokenizer.get_vocab()
    for row, token in enumerate(tokens):
        if ids.get(token) != row:
            raise FaultError(f"{where}: {token!r} has the id {ids.get(token)}, in {VOCABULARY_NAME} it is row {row}")
    compare(where, "tokens", len(tokens), len(ids))
    found, expected = (json.loads(one.to_str()) for one in (tokenizer, build_tokenizer(tokens, *_casing(config))))
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            raise FaultError(f"{where}: its {name} is not what the settings of the vocabulary give")


def _casing(config: VocabularyConfig) -> tuple[bool, bool | None]:
    return config.lowercase, config.strip_accents


def _retrain(directory: str, manifest: Manifest, tokens: list[str], config: VocabularyConfig) -> None:
    """Count and train again from the documents next to the vocabulary; without them nothing is compared."""
    source = sibling(directory, DOCUMENTS)
    documents = stated(source)
    if documents is None or documents.digest != manifest.inputs.get(DOCUMENTS):
        return
    tables = (table_of(source, file, DOCUMENTS_SCHEMA) for file in documents.files_of("train"))
    words = merge_counts(
        count_words(table["sentences"].combine_chunks().flatten(), *_casing(config)) for table in tables
    )
    distinct, counts = words["word"].combine_chunks(), words["count"].to_numpy()
    where = f"{directory}/{VOCABULARY_NAME}"
    try:
        again = train(distinct, counts, config.size, config.min_count, config.alphabet_size, config.layout)
    except InputError as error:
        raise FaultError(f"{where}: cannot come from {source} with the settings of its manifest: {error}") from error
    for row, (token, expected) in enumerate(zip(tokens, again, strict=True)):
        if token != expected:
            raise FaultError(
                f"{where}, row {row}: {token!r}, where training on {source} with the settings of the manifest gives "
                f"{expected!r}"
            )
    statistics = statistics_of(words, marks_stripped(words), tokens, config)
    for name in sorted({*statistics, *manifest.statistics}):
        compare(directory, name, manifest.statistics.get(name), statistics.get(name))


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
