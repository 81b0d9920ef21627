"""Check the vocabulary stage: its files, and the vocabulary trained again."""

from __future__ import annotations

import json

from tokenizers import Tokenizer

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest
from pipelines.contract.schemas import SPECIAL_TOKENS, documents_schema
from pipelines.contract.workspace import DOCUMENTS, TOKENIZER_NAME, VOCABULARY_NAME
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.vocabulary import VocabularyConfig
from pipelines.validation.faults import FaultError, compare, config_of, table_of, tokens_of
from pipelines.validation.manifests import sibling, stated
from pipelines.wordpiece.reference_tokenizer import build_tokenizer
from pipelines.wordpiece.statistics import statistics_of
from pipelines.wordpiece.trainer import reserved_tokens, train
from pipelines.wordpiece.word_counts import count_words, marks_stripped, merge_counts


def validate_vocabulary(directory: str, manifest: Manifest) -> None:
    where = f"{directory}/{VOCABULARY_NAME}"
    config = config_of(directory, manifest, VocabularyConfig)
    records = {file.name: file for file in manifest.files}
    tokens = tokens_of(directory)
    seen: dict[str, int] = {}
    for row, token in enumerate(tokens):
        if not token or token != token.strip():
            raise FaultError(f"{where}, row {row}: {token!r} is not a token")
        if seen.setdefault(token, row) != row:
            raise FaultError(f"{where}, row {row}: {token!r} is already in row {seen[token]}")
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
    schema = documents_schema(config_of(source, documents, DocumentsConfig).source_names)
    tables = (table_of(source, file, schema) for file in documents.files_of("train"))
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
    statistics = statistics_of(words, marks_stripped(words), tokens, config).to_json()
    for name in sorted({*statistics, *manifest.statistics}):
        compare(directory, name, manifest.statistics.get(name), statistics.get(name))
