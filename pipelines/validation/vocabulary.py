"""Check the vocabulary stage: its files, and the vocabulary made again."""

from __future__ import annotations

import json

from tokenizers import Tokenizer

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest
from pipelines.contract.schemas import SPECIAL_TOKENS, documents_schema
from pipelines.contract.workspace import BROUGHT_INPUT, DOCUMENTS, TOKENIZER_NAME, VOCABULARY_NAME
from pipelines.settings.documents import DocumentsConfig
from pipelines.settings.vocabulary import VocabularyAdoption, VocabularyConfig
from pipelines.statistics.preprocessing import VocabularyStatistics
from pipelines.validation.faults import FaultError, compare, config_of, settings_of, table_of, tokens_of
from pipelines.validation.manifests import sibling, stated
from pipelines.vocabularies.extension import restored
from pipelines.vocabularies.making import Adoption, Training, VocabularyMaker
from pipelines.vocabularies.reading import BroughtVocabulary, vocabulary_digest
from pipelines.wordpiece.reference_tokenizer import build_tokenizer
from pipelines.wordpiece.tokenizer_settings import TokenizerSettings
from pipelines.wordpiece.trainer import reserved_tokens
from pipelines.wordpiece.word_counts import count_words, merge_counts


def validate_vocabulary(directory: str, manifest: Manifest) -> None:
    where = f"{directory}/{VOCABULARY_NAME}"
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
    settings = settings_of(directory)
    maker = _maker(directory, manifest, tokens, settings)
    for name, found, expected in zip(settings._fields, settings, maker.settings, strict=True):
        compare(f"{directory}/{TOKENIZER_NAME}", name, expected, found)
    _validate_tokenizer(directory, tokens, settings)
    _make_again(directory, manifest, tokens, maker)


def _maker(directory: str, manifest: Manifest, tokens: list[str], settings: TokenizerSettings) -> VocabularyMaker:
    """How the manifest states that the vocabulary was made."""
    if BROUGHT_INPUT in manifest.inputs:
        adoption = config_of(directory, manifest, VocabularyAdoption)
        return _adoption(directory, manifest, adoption.extend, tokens, settings)
    config = config_of(directory, manifest, VocabularyConfig)
    compare(directory, "config.size", config.size, len(tokens))
    for row, token in enumerate(reserved_tokens(config.layout)):
        if tokens[row] != token:
            where = f"{directory}/{VOCABULARY_NAME}"
            raise FaultError(f"{where}, row {row}: {tokens[row]!r}, where layout = {config.layout!r} has {token!r}")
    return Training(config)


def _adoption(
    directory: str, manifest: Manifest, extend: int, tokens: list[str], settings: TokenizerSettings
) -> Adoption:
    """Restore the vocabulary that was brought, and compare its digest."""
    try:
        facts = manifest.statistics_as(VocabularyStatistics)
    except InputError as error:
        raise FaultError(str(error)) from error
    added = facts.extension
    before = restored(tokens, added.replaced, added.appended) if added else tokens
    found = vocabulary_digest(before, settings)
    compare(directory, f"inputs.{BROUGHT_INPUT}", manifest.inputs[BROUGHT_INPUT], found)
    compare(directory, "config.extend", extend, added.words_added if added else 0)
    return Adoption(BroughtVocabulary(facts.origin or "", tuple(before), settings, None), extend)


def _validate_tokenizer(directory: str, tokens: list[str], settings: TokenizerSettings) -> None:
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
    found, expected = (json.loads(one.to_str()) for one in (tokenizer, build_tokenizer(tokens, *settings)))
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            raise FaultError(f"{where}: its {name} is not what the settings of the vocabulary give")


def _make_again(directory: str, manifest: Manifest, tokens: list[str], maker: VocabularyMaker) -> None:
    """Count and make the vocabulary again from the documents next to it; without them nothing is compared."""
    source = sibling(directory, DOCUMENTS)
    documents = stated(source)
    if documents is None or documents.digest != manifest.inputs.get(DOCUMENTS):
        return
    schema = documents_schema(config_of(source, documents, DocumentsConfig).source_names)
    tables = (table_of(source, file, schema) for file in documents.files_of("train"))
    words = merge_counts(
        count_words(table["sentences"].combine_chunks().flatten(), *maker.settings[:3]) for table in tables
    )
    where = f"{directory}/{VOCABULARY_NAME}"
    try:
        again, statistics = maker.make(words)
    except InputError as error:
        raise FaultError(f"{where}: cannot come from {source} with the settings of its manifest: {error}") from error
    for row, (token, expected) in enumerate(zip(tokens, again, strict=True)):
        if token != expected:
            raise FaultError(
                f"{where}, row {row}: {token!r}, where making it from {source} with the settings of the manifest "
                f"gives {expected!r}"
            )
    facts = statistics.to_json()
    for name in sorted({*facts, *manifest.statistics}):
        compare(directory, name, manifest.statistics.get(name), facts.get(name))
