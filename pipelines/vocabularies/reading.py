"""Read the vocabulary that a recipe brings, with the ids that `transformers.AutoTokenizer` gives.

Nothing is guessed: files that contradict each other, and settings that the tokenizer of this project does not have,
are refused by name (see `agreement`). Tests compare the ids with `transformers`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import digest_of
from pipelines.contract.schemas import CONTINUATION, SPECIAL_TOKENS
from pipelines.contract.workspace import CONFIG_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME, VOCABULARY_NAME
from pipelines.settings.vocabulary import VocabularyConfig
from pipelines.vocabularies.agreement import (
    CLASSES_OF_JSON,
    Refusal,
    added_in_config,
    check_json,
    check_settings,
    settings_in_config,
)
from pipelines.vocabularies.locating import VocabularyFiles, find_vocabulary
from pipelines.wordpiece.tokenizer_settings import AddedToken, TokenizerSettings, settings_in

MOST_ENTRIES = 1 << 24
"""As many as a trained vocabulary may have."""


class BroughtVocabulary(NamedTuple):
    """A vocabulary as it was found.

    origin: as in the recipe. tokens: entries and added tokens by id. assumed: a line about settings that the source
    does not state and the recipe decides; None if it states all.
    """

    origin: str
    tokens: tuple[str, ...]
    settings: TokenizerSettings
    assumed: str | None

    @property
    def digest(self) -> str:
        """Hash of all that decides ids, wherever and in whichever files it was found."""
        return vocabulary_digest(self.tokens, self.settings)


def vocabulary_digest(tokens: Sequence[str], settings: TokenizerSettings) -> str:
    """Hash of entries and settings."""
    return digest_of([list(tokens), *settings[:3], [list(token) for token in settings.added_tokens]])


def read_vocabulary(config: VocabularyConfig) -> BroughtVocabulary:
    """Find, read and check the vocabulary that `from` names.

    Raises:
        AbsentVocabularyError: it cannot be reached.
        InputError: it is not a complete BERT vocabulary, its files contradict each other, or the recipe contradicts it.
    """
    assert config.origin is not None
    files = find_vocabulary(config.origin)
    try:
        tokens, settings, assumed = _read(files, config)
        _check_tokens(files, tokens, settings)
        _check_recipe(config, tokens, settings)
    except Refusal as refusal:
        raise InputError(f"vocabulary.from = {config.origin}: {refusal}") from refusal
    return BroughtVocabulary(config.origin, tuple(tokens), settings, assumed)


def _read(files: VocabularyFiles, config: VocabularyConfig) -> tuple[list[str], TokenizerSettings, str | None]:
    check_settings(files)
    if files.has(TOKENIZER_NAME):
        tokens, settings = _from_json(files)
        return tokens, settings, None
    tokens = _lines_of(files)
    if files.is_own:
        raise Refusal(f"{TOKENIZER_NAME} is missing, and nothing else records the casing; rebuild that stage")
    kind = files.table(TOKENIZER_CONFIG_NAME).get("tokenizer_class")
    if kind in CLASSES_OF_JSON:
        raise Refusal(f"{TOKENIZER_NAME} is missing, and tokenizer_class = {kind!r} is made from it; add that file")
    if files.has(TOKENIZER_CONFIG_NAME):
        return (*_with_added(files, tokens, settings_in_config(files)), None)
    if files.casing_next_to and not {"lowercase", "strip_accents"} & config.model_fields_set:
        raise Refusal(
            f"{files.casing_next_to} next to it states the casing; name the directory, or set vocabulary.lowercase"
        )
    settings = TokenizerSettings(config.lowercase, config.strip_accents)
    said = f"{str(config.lowercase).lower()}{'' if 'lowercase' in config.model_fields_set else ', the default'}"
    return (
        *_with_added(files, tokens, settings),
        f"{config.origin} states no casing: vocabulary.lowercase = {said}, applies to it",
    )


def _from_json(files: VocabularyFiles) -> tuple[list[str], TokenizerSettings]:
    """Entries and settings by tokenizer.json, which the other files must not contradict."""
    from tokenizers import Tokenizer

    raw = files.table(TOKENIZER_NAME)
    try:
        backend = Tokenizer.from_str(files.text(TOKENIZER_NAME))
        contents = json.loads(backend.to_str())
    except Exception as error:  # the library raises Exception itself
        raise Refusal(f"{TOKENIZER_NAME} is not a tokenizer ({error}); save it again") from error
    check_json(files, contents)
    settings = settings_in(contents)
    ids: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        place = next(place for place, token in enumerate(tokens) if ids[token] != place)
        raise Refusal(f"{TOKENIZER_NAME} has no token with the id {place}, or two; ids must be 0, 1, 2, ...")
    _check_added_ids(raw, ids)
    if files.has(VOCABULARY_NAME):
        _check_one_vocabulary(_lines_of(files), ids, settings.added_tokens)
    return tokens, settings


def _check_added_ids(raw: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    """`tokenizers` numbers added tokens itself, and only warns when a file has other numbers."""
    for token in raw.get("added_tokens") or []:
        if ids[token["content"]] != token["id"]:
            raise Refusal(
                f"{TOKENIZER_NAME} gives the added token {token['content']!r} the id {token['id']}, and libraries "
                f"number it {ids[token['content']]}; save the tokenizer again"
            )


def _check_one_vocabulary(lines: Sequence[str], ids: Mapping[str, int], added: Sequence[AddedToken]) -> None:
    outside = {token.content for token in added if not token.is_entry}
    for index, token in enumerate(lines):
        if ids.get(token) != index:
            raise Refusal(
                f"line {index + 1} of {VOCABULARY_NAME} is {token!r}, which has the id {ids.get(token)} in "
                f"{TOKENIZER_NAME}; name the one of the two files that the model was trained with"
            )
    for token, index in ids.items():
        if index >= len(lines) and token not in outside:
            raise Refusal(
                f"{VOCABULARY_NAME} lacks {token!r}, which has the id {index} in {TOKENIZER_NAME}; name the one of the "
                "two files that the model was trained with"
            )


def _lines_of(files: VocabularyFiles) -> list[str]:
    """The entries of vocab.txt.

    Raises:
        Refusal: a line is empty or occurs twice, so that ids would not be line numbers.
    """
    text = files.text(VOCABULARY_NAME).replace("\r\n", "\n")
    lines = text.removesuffix("\n").split("\n")
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise Refusal(f"line {number} of {VOCABULARY_NAME} is empty; each line is an entry, so remove it")
        if line in seen:
            raise Refusal(f"{line!r} is on line {seen[line]} and on line {number} of {VOCABULARY_NAME}; rename one")
        seen[line] = number
    _require_special(lines)
    return lines


def _require_special(tokens: Sequence[str]) -> None:
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise Refusal(f"lacks {', '.join(missing)}; it is not a BERT vocabulary")


def _with_added(
    files: VocabularyFiles, tokens: list[str], settings: TokenizerSettings
) -> tuple[list[str], TokenizerSettings]:
    """Append the added tokens that tokenizer_config.json lists after the entries of vocab.txt."""
    known, tokens = {token: index for index, token in enumerate(tokens)}, list(tokens)
    added: list[AddedToken] = []
    for token in added_in_config(files):
        is_entry = token.content in known
        if token.id != (known[token.content] if is_entry else len(tokens)):
            raise Refusal(
                f"{TOKENIZER_CONFIG_NAME} gives the added token {token.content!r} the id {token.id}, and "
                f"{VOCABULARY_NAME} {known.get(token.content, len(tokens))}; save the tokenizer again"
            )
        if not is_entry:
            tokens.append(token.content)
        if token.content not in SPECIAL_TOKENS:
            added.append(token._replace(is_entry=is_entry))
    return tokens, settings._replace(added_tokens=tuple(added))


def _check_tokens(files: VocabularyFiles, tokens: Sequence[str], settings: TokenizerSettings) -> None:
    _require_special(tokens)
    outside = {token.content for token in settings.added_tokens if not token.is_entry}
    if len(tokens) > MOST_ENTRIES:
        raise Refusal(f"has {len(tokens):,} entries; at most {MOST_ENTRIES:,} are supported")
    if not any(token.startswith(CONTINUATION) and len(token) > len(CONTINUATION) for token in tokens):
        raise Refusal("no entry begins with ##, which marks what continues a word; it is not a WordPiece vocabulary")
    for index, token in enumerate(tokens):
        if token not in outside and token != token.strip():
            raise Refusal(f"entry {index} is {token!r}, with white space around it; no word can match it, so rename it")
        if "\n" in token or "\r" in token:
            raise Refusal(f"token {index} is {token!r}, which {VOCABULARY_NAME} cannot hold on a line")
    for added in settings.added_tokens:
        if not added.content.strip():
            raise Refusal(f"the added token {added.id} is {added.content!r}, which is white space; remove it")
    size = files.table(CONFIG_NAME).get("vocab_size")
    if isinstance(size, int) and len(tokens) > size:
        raise Refusal(
            f"has {len(tokens):,} tokens, and {CONFIG_NAME} vocab_size = {size:,}; they belong to different models"
        )


def _check_recipe(config: VocabularyConfig, tokens: Sequence[str], settings: TokenizerSettings) -> None:
    """What the recipe sets must be what the vocabulary has."""
    unused = unused_places(tokens, settings)
    appended = max(0, config.extend - len(unused))
    if appended and any(not token.is_entry for token in settings.added_tokens):
        raise Refusal(
            f"it has {len(unused):,} [unused] entries and added tokens after its last entry, behind which nothing can "
            f"be appended; lower vocabulary.extend = {config.extend} to {len(unused)}"
        )
    size = len(tokens) + appended
    found: dict[str, Any] = {"size": size, "lowercase": settings.lowercase, "strip_accents": settings.strip_accents}
    for name, value in found.items():
        stated = getattr(config, name)
        same = stated == value or (name == "strip_accents" and stated == settings.strips_accents)
        if name in config.model_fields_set and not same:
            shown = [str(one).lower() if isinstance(one, bool) else one for one in (stated, value)]
            raise Refusal(f"its {name} is {shown[1]}, the recipe has vocabulary.{name} = {shown[0]}; remove the latter")


def unused_places(tokens: Sequence[str], settings: TokenizerSettings) -> list[int]:
    """Ids of the `[unusedN]` entries that no added token occupies, in order."""
    taken = {token.id for token in settings.added_tokens}
    return [
        index
        for index, token in enumerate(tokens)
        if index not in taken
        and token.startswith("[unused")
        and token.endswith("]")
        and token[len("[unused") : -1].isdecimal()
    ]


def size_of(config: VocabularyConfig) -> int:
    """Entries that the vocabulary of a recipe will have.

    Raises:
        InputError: as `read_vocabulary`.
    """
    if config.origin is None:
        return config.size
    vocabulary = read_vocabulary(config)
    return len(vocabulary.tokens) + max(0, config.extend - len(unused_places(vocabulary.tokens, vocabulary.settings)))
