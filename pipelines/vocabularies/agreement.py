"""Refuse files of a tokenizer that contradict each other, or that state what BERT's tokenizer does not have.

`transformers` builds a BertTokenizer from tokenizer_config.json and takes only entries and added tokens from
tokenizer.json; for PreTrainedTokenizerFast it uses tokenizer.json as it is; other releases had other rules. So a
setting that both files state must be the same in both, and one that only decides the ids under one of the rules must
not differ from BERT's default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.contract.schemas import CLS, CONTINUATION, SEP, SPECIAL_TOKENS, UNK
from pipelines.contract.workspace import (
    ADDED_TOKENS_NAME,
    CONFIG_NAME,
    SPECIAL_TOKENS_MAP_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
)
from pipelines.vocabularies.locating import VocabularyFiles
from pipelines.wordpiece.reference_tokenizer import MAX_CHARACTERS_PER_WORD
from pipelines.wordpiece.tokenizer_config import ANY_TOKENIZER, BERT_TOKENIZER, ROLES
from pipelines.wordpiece.tokenizer_settings import (
    MODEL,
    NORMALIZER,
    PRE_TOKENIZER,
    AddedToken,
    TokenizerSettings,
    settings_in,
)

CLASSES_OF_JSON = (ANY_TOKENIZER, "TokenizersBackend")
"""Classes of `transformers` that use tokenizer.json as it is."""
_CLASSES = (
    *(name for kind in (BERT_TOKENIZER, "DistilBertTokenizer", "ElectraTokenizer") for name in (kind, f"{kind}Fast")),
    *CLASSES_OF_JSON,
)
_KEYS = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
"""Settings of a BertTokenizer in tokenizer_config.json, in the order of `TokenizerSettings`, with their defaults."""
_FIXED = {"clean_text": True, "do_basic_tokenize": True, "wordpieces_prefix": CONTINUATION}
_SAVE_AGAIN = "save the tokenizer again with save_pretrained of a BertTokenizer"


class Refusal(Exception):  # noqa: N818 - a reason, which the caller completes to an error
    """Why a vocabulary cannot be adopted, without the name of its source."""


def check_settings(files: VocabularyFiles) -> None:
    """Check what the files next to tokenizer.json and vocab.txt state on their own.

    Raises:
        Refusal: a setting is not one of BERT's tokenizer.
    """
    config = files.table(TOKENIZER_CONFIG_NAME)
    kind = config.get("tokenizer_class")
    if kind is not None and kind not in _CLASSES:
        raise Refusal(f"{TOKENIZER_CONFIG_NAME} has tokenizer_class = {kind!r}; only BERT's WordPiece is supported")
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise Refusal(f"{TOKENIZER_CONFIG_NAME} has {name} = {config[name]!r}; only {value!r} is supported")
    for name in ("never_split", "split_special_tokens"):
        if config.get(name):
            raise Refusal(f"{TOKENIZER_CONFIG_NAME} has {name} = {config[name]!r}, which is not supported; remove it")
    for name in (TOKENIZER_CONFIG_NAME, SPECIAL_TOKENS_MAP_NAME):
        table = files.table(name)
        for role, usual in ROLES.items():
            stated = _content(table.get(role, usual))
            if stated != usual:
                raise Refusal(f"{name} has {role} = {stated!r}; a BERT vocabulary has {usual}")
    for name, default in _KEYS.items():
        found = config.get(name, default)
        if not isinstance(found, bool) and not (found is None and default is None):
            raise Refusal(f"{TOKENIZER_CONFIG_NAME} has {name} = {found!r}, which is not true or false")


def settings_in_config(files: VocabularyFiles) -> TokenizerSettings:
    """The settings that tokenizer_config.json gives a BertTokenizer, without added tokens."""
    config = files.table(TOKENIZER_CONFIG_NAME)
    lowercase, strip_accents, tokenize_chinese_chars = (config.get(name, default) for name, default in _KEYS.items())
    return TokenizerSettings(bool(lowercase), strip_accents, bool(tokenize_chinese_chars))


def added_in_config(files: VocabularyFiles) -> list[AddedToken]:
    """The added tokens of tokenizer_config.json, by id.

    Raises:
        Refusal: another file names one that is not among them, so that its flags are unknown.
    """
    tokens = sorted(_listed_in_config(files), key=lambda token: token.id)
    _check_named(files, {token.content for token in tokens})
    return tokens


def check_json(files: VocabularyFiles, contents: Mapping[str, Any]) -> None:
    """Check tokenizer.json, and that the other files agree with it.

    Args:
        contents: of tokenizer.json, as `tokenizers` writes it.

    Raises:
        Refusal: it is not BERT's tokenizer, or `transformers` might load another one.
    """
    _check_parts(contents)
    settings = settings_in(contents)
    config, by_json = files.table(TOKENIZER_CONFIG_NAME), dict(zip(_KEYS, settings[:3], strict=True))
    is_used_alone = files.is_own or not files.has(CONFIG_NAME)
    for name, default in _KEYS.items():
        if name in config:
            stated = config[name]
        elif files.has(TOKENIZER_CONFIG_NAME):
            stated = by_json[name] if config.get("tokenizer_class") in CLASSES_OF_JSON else default
        else:
            stated = by_json[name] if is_used_alone else default
        if stated != by_json[name]:
            where = TOKENIZER_CONFIG_NAME if files.has(TOKENIZER_CONFIG_NAME) else f"no {TOKENIZER_CONFIG_NAME}, which"
            raise Refusal(
                f"{TOKENIZER_NAME} has {name} = {by_json[name]!r}, and {where} means {stated!r}; state in "
                f"{TOKENIZER_CONFIG_NAME} what the model was trained with, or {_SAVE_AGAIN}"
            )
    _check_added(files, settings)


def _check_parts(contents: Mapping[str, Any]) -> None:
    normalizer, splitter, model = (contents[name] or {} for name in ("normalizer", "pre_tokenizer", "model"))
    for part, name, found, expected in (
        ("model", "type", model.get("type"), MODEL),
        ("model", "continuing_subword_prefix", model.get("continuing_subword_prefix"), CONTINUATION),
        ("model", "unk_token", model.get("unk_token"), UNK),
        ("model", "max_input_chars_per_word", model.get("max_input_chars_per_word"), MAX_CHARACTERS_PER_WORD),
        ("normalizer", "type", normalizer.get("type"), NORMALIZER),
        ("normalizer", "clean_text", normalizer.get("clean_text"), True),
        ("pre_tokenizer", "type", splitter.get("type"), PRE_TOKENIZER),
    ):
        if found != expected:
            raise Refusal(f"{TOKENIZER_NAME} has {part}.{name} = {found!r}; only {expected!r} is supported")
    _check_frame(contents)


def _check_frame(contents: Mapping[str, Any]) -> None:
    """A text must become [CLS] text [SEP], as in pre-training."""
    frame = contents["post_processor"]
    if frame is None:
        return
    if frame["type"] == "TemplateProcessing":
        ids = [part.get("SpecialToken", part.get("Sequence"))["id"] for part in frame["single"]]
        fits = ids == [CLS, "A", SEP]
    else:
        fits = frame["type"] == "BertProcessing" and (frame["cls"][0], frame["sep"][0]) == (CLS, SEP)
    if not fits:
        raise Refusal(f"{TOKENIZER_NAME} has a post_processor that does not put a text between {CLS} and {SEP}")


def _check_added(files: VocabularyFiles, settings: TokenizerSettings) -> None:
    """The added tokens of tokenizer.json and those that the other files name must be the same."""
    listed = {token.content: token for token in _listed_in_config(files) if token.content not in SPECIAL_TOKENS}
    own = {token.content: token for token in settings.added_tokens}
    if "added_tokens_decoder" in files.table(TOKENIZER_CONFIG_NAME):
        for content in sorted({*listed, *own}):
            one, other = listed.get(content), own.get(content)
            if one is None or other is None or one._replace(is_entry=other.is_entry) != other:
                raise Refusal(
                    f"{TOKENIZER_CONFIG_NAME} and {TOKENIZER_NAME} differ in the added token {content!r}; {_SAVE_AGAIN}"
                )
    _check_named(files, {*own, *SPECIAL_TOKENS})
    for content in _additional(files):
        if content in own and not own[content].special:
            raise Refusal(f"{content!r} is a special token in one file and not in {TOKENIZER_NAME}; {_SAVE_AGAIN}")


def _listed_in_config(files: VocabularyFiles) -> Iterator[AddedToken]:
    decoder = files.table(TOKENIZER_CONFIG_NAME).get("added_tokens_decoder") or {}
    for index, flags in decoder.items():
        try:
            names = ("special", "single_word", "lstrip", "rstrip", "normalized")
            yield AddedToken(str(flags["content"]), int(index), False, *(bool(flags[name]) for name in names))
        except (KeyError, TypeError, ValueError) as error:
            raise Refusal(
                f"{TOKENIZER_CONFIG_NAME}: added_tokens_decoder.{index} lacks {error}; {_SAVE_AGAIN}"
            ) from error


def _check_named(files: VocabularyFiles, known: set[str]) -> None:
    for name, contents in (
        (ADDED_TOKENS_NAME, list(files.table(ADDED_TOKENS_NAME))),
        ("additional_special_tokens", list(_additional(files))),
    ):
        for content in contents:
            if content not in {*known, *SPECIAL_TOKENS}:
                raise Refusal(f"{name} names {content!r}, which no other file describes; {_SAVE_AGAIN}")


def _additional(files: VocabularyFiles) -> Iterator[str]:
    for name in (TOKENIZER_CONFIG_NAME, SPECIAL_TOKENS_MAP_NAME):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            stated = files.table(name).get(key) or []
            yield from map(_content, stated.values() if isinstance(stated, dict) else stated)


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
