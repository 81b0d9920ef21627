"""Writes the tokenizer of an exported model: complete, consistent, and equal to the one used in training."""

from __future__ import annotations

import json
from typing import Any

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.schemas import CONTINUATION
from pipelines.contract.workspace import SPECIAL_TOKENS_MAP_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME, VOCABULARY_NAME
from pipelines.wordpiece.tokenizer_config import (
    ANY_TOKENIZER,
    BERT_TOKENIZER,
    as_file,
    bert_settings,
    special_tokens_map,
    tokenizer_config,
)
from training.tokenizing.loading import LoadedTokenizer, load_tokenizer, parts_of

_FIXED_MODEL = {"type": "WordPiece", "continuing_subword_prefix": CONTINUATION, "max_input_chars_per_word": 100}
"""Fixed properties of a BertTokenizer's model, besides its settings, vocabulary and unknown token."""


def write_tokenizer(directory: str, source: str, model_max_length: int) -> list[str]:
    """Write the tokenizer of `source` to a directory, and load it back to verify that it gives the same ids.

    Only what determines ids is copied: no classes or code named in a foreign tokenizer_config.json.

    Args:
        directory: of the model, with its config.json.
        source: the vocabulary or the encoder that the model was trained with.
        model_max_length: positions of the model; consumers truncate longer texts to it.

    Returns:
        Names of the files written.

    Raises:
        InputError: the tokenizer cannot be read, or would give different ids when loaded back.
    """
    tokenizer = load_tokenizer(source)
    files = {TOKENIZER_NAME: _tokenizer_json(source, tokenizer), **_settings(tokenizer, model_max_length)}
    vocabulary = _vocabulary(source, tokenizer)
    if vocabulary is not None:
        files[VOCABULARY_NAME] = vocabulary
    for name in (VOCABULARY_NAME, TOKENIZER_NAME, TOKENIZER_CONFIG_NAME, SPECIAL_TOKENS_MAP_NAME):
        if name in files:
            storage.write_bytes(storage.join(directory, name), files[name])
    _require_same(directory, source, tokenizer)
    return sorted(files)


def _tokenizer_json(source: str, tokenizer: LoadedTokenizer) -> bytes:
    """The source's own bytes if they are equivalent, so that a vocabulary's file stays identical."""
    text: str = tokenizer.backend.to_str(pretty=True)
    path = storage.join(source, TOKENIZER_NAME)
    if storage.file_size_bytes(path) is not None:
        own = storage.read_bytes(path)
        if json.loads(own) == json.loads(text):
            return own
    return text.encode()


def _settings(tokenizer: LoadedTokenizer, model_max_length: int) -> dict[str, bytes]:
    parts = parts_of(tokenizer.backend)
    settings = _bert_settings(parts, tokenizer)
    kind = ANY_TOKENIZER if settings is None else BERT_TOKENIZER
    known = tokenizer.backend.get_vocab(with_added_tokens=True)
    roles = {role: token for role, token in tokenizer.roles.items() if token in known}
    config = tokenizer_config(kind, settings or {}, roles, parts["added_tokens"], model_max_length)
    if tokenizer.splits_special_tokens:
        config["split_special_tokens"] = True
    return {TOKENIZER_CONFIG_NAME: as_file(config), SPECIAL_TOKENS_MAP_NAME: as_file(special_tokens_map(config))}


def _bert_settings(parts: dict[str, Any], tokenizer: LoadedTokenizer) -> dict[str, bool | None] | None:
    """The settings from which `transformers` builds exactly this tokenizer; None if there are none."""
    normalizer, model = parts["normalizer"] or {}, parts["model"]
    if normalizer.get("type") != "BertNormalizer" or parts["pre_tokenizer"] != {"type": "BertPreTokenizer"}:
        return None
    fixed = {**_FIXED_MODEL, "unk_token": tokenizer.roles["unk_token"]}
    if not normalizer["clean_text"] or {name: value for name, value in model.items() if name != "vocab"} != fixed:
        return None
    return bert_settings(normalizer["lowercase"], normalizer["strip_accents"], normalizer["handle_chinese_chars"])


def _vocabulary(source: str, tokenizer: LoadedTokenizer) -> bytes | None:
    """vocab.txt for readers without support for tokenizer.json; None if line numbers cannot represent the ids."""
    path = storage.join(source, VOCABULARY_NAME)
    if storage.file_size_bytes(path) is not None:
        return storage.read_bytes(path)
    ids: dict[str, int] = tokenizer.backend.get_vocab(with_added_tokens=False)
    tokens = sorted(ids, key=ids.__getitem__)
    in_order = [ids[token] for token in tokens] == list(range(len(tokens)))
    if not in_order or any("\n" in token or "\r" in token for token in tokens):
        return None
    return "".join(f"{token}\n" for token in tokens).encode()


def _require_same(directory: str, source: str, tokenizer: LoadedTokenizer) -> None:
    written = load_tokenizer(directory)
    ours, theirs = (parts_of(each.backend) for each in (tokenizer, written))
    for name in ours:
        if ours[name] != theirs[name]:
            raise InputError(
                f"{source}: transformers would load another {name} from an export of this tokenizer, so the export is "
                "refused; save the tokenizer again with save_pretrained of a BertTokenizer"
            )
