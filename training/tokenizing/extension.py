"""Compares the vocabulary of an encoder with the one that continues it: equal, or with further words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipelines.contract.errors import InputError
from pipelines.contract.schemas import CONTINUATION
from training.tokenizing.loading import LoadedTokenizer, load_tokenizer, parts_of

_UNUSED = re.compile(r"\[unused\d+\]")


def new_entries(encoder_directory: str, vocabulary_directory: str) -> dict[int, tuple[int, ...]]:
    """The entries of a vocabulary that an encoder's lacks: by id, the encoder's ids for that word.

    Both must agree in all other entries, and in everything else that determines ids. New words take the place of
    `[unused]` entries or follow the last one.

    Args:
        encoder_directory: Hugging Face directory of the encoder.
        vocabulary_directory: the stage that the examples were built with.

    Raises:
        InputError: the vocabularies differ otherwise, or one cannot be loaded.
    """
    encoder, continued = load_tokenizer(encoder_directory), load_tokenizer(vocabulary_directory)
    before, after = (_tokens_of(each) for each in (encoder, continued))
    added = []
    for token_id in sorted(before.keys() | after.keys()):
        old, new = before.get(token_id), after.get(token_id)
        if old == new:
            continue
        if new is None or (old is not None and not _UNUSED.fullmatch(old)):
            raise InputError(_mismatch(encoder_directory, vocabulary_directory, f"entry {token_id}", new, old))
        added.append(token_id)
    ours, theirs = _settings_of(continued), _settings_of(encoder)
    for name, value in ours.items():
        if value != theirs[name]:
            raise InputError(_mismatch(encoder_directory, vocabulary_directory, name, value, theirs[name]))
    return _pieces(encoder, {token_id: after[token_id] for token_id in added}, vocabulary_directory)


def _pieces(
    encoder: LoadedTokenizer, words: Mapping[int, str], vocabulary_directory: str
) -> dict[int, tuple[int, ...]]:
    tokenizer = encoder.for_texts()
    pieces = {}
    for token_id, word in words.items():
        ids = tokenizer.encode(word, add_special_tokens=False).ids
        if word.startswith(CONTINUATION) or not ids:
            raise InputError(
                f"{vocabulary_directory}: the new entry {word!r} (id {token_id}) is no word, so the initial encoder "
                "has no pieces to initialize it from; add complete words only"
            )
        pieces[token_id] = tuple(ids)
    return pieces


def _tokens_of(tokenizer: LoadedTokenizer) -> dict[int, str]:
    return {token_id: token for token, token_id in tokenizer.backend.get_vocab(with_added_tokens=True).items()}


def _settings_of(tokenizer: LoadedTokenizer) -> dict[str, Any]:
    """All that determines ids besides the entries, in a form in which equal tokenizers are equal."""
    parts = parts_of(tokenizer.backend)
    normalizer = parts["normalizer"]
    if normalizer and normalizer.get("type") == "BertNormalizer" and normalizer["strip_accents"] is None:
        normalizer["strip_accents"] = normalizer["lowercase"]
    roles = set(tokenizer.roles.values())
    return {
        "normalizer": normalizer,
        "pre_tokenizer": parts["pre_tokenizer"],
        "model": {name: value for name, value in parts["model"].items() if name != "vocab"},
        # In texts, special tokens are text: how they would match there is without effect.
        "added tokens": sorted(
            (token for token in parts["added_tokens"] if token["content"] not in roles), key=lambda token: token["id"]
        ),
        "special tokens": dict(tokenizer.roles),
    }


def _mismatch(encoder_directory: str, vocabulary_directory: str, what: str, ours: Any, theirs: Any) -> str:
    return (
        f"{vocabulary_directory}: the vocabulary of the examples is not that of the initial encoder "
        f"{encoder_directory}: {what} is {ours!r}, the encoder's is {theirs!r}; build vocabulary and examples again "
        "with the encoder's vocabulary, or choose another pretraining.initial_encoder"
    )
