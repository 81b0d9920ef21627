"""The settings of a BERT tokenizer besides its entries, as a tokenizer.json states them.

Every consumer of a vocabulary reads them from the stage's own tokenizer.json, so that there is one truth for a
vocabulary that was trained and for one that was brought.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.schemas import SPECIAL_TOKENS
from pipelines.contract.workspace import TOKENIZER_NAME

NORMALIZER, PRE_TOKENIZER, MODEL = "BertNormalizer", "BertPreTokenizer", "WordPiece"
"""Types of the parts of a BERT tokenizer in tokenizer.json."""

_FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")


class AddedToken(NamedTuple):
    """A token that is found in a text before the text is split into words.

    is_entry: WordPiece may produce it too. The flags are those of `tokenizers.AddedToken`.
    """

    content: str
    id: int
    is_entry: bool
    special: bool
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool

    def flags(self) -> dict[str, bool]:
        """The flags by their names."""
        return {name: getattr(self, name) for name in _FLAGS}


class TokenizerSettings(NamedTuple):
    """What decides the ids of a text besides the entries of the vocabulary.

    strip_accents: None strips when lower-casing, as BERT. added_tokens: besides BERT's own special tokens, by id.
    """

    lowercase: bool
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True
    added_tokens: tuple[AddedToken, ...] = ()

    @property
    def strips_accents(self) -> bool:
        """Whether accents are removed, as the two settings have it together."""
        return self.lowercase if self.strip_accents is None else self.strip_accents


def settings_in(contents: Mapping[str, Any]) -> TokenizerSettings:
    """The settings in the contents of a tokenizer.json, whose parts must be BERT's.

    Raises:
        KeyError, TypeError: a part is missing or of another form.
    """
    normalizer, entries = contents["normalizer"], contents["model"]["vocab"]
    added = [
        AddedToken(token["content"], token["id"], token["content"] in entries, *(bool(token[name]) for name in _FLAGS))
        for token in contents["added_tokens"]
        if token["content"] not in SPECIAL_TOKENS
    ]
    return TokenizerSettings(
        lowercase=bool(normalizer["lowercase"]),
        strip_accents=normalizer["strip_accents"],
        tokenize_chinese_chars=bool(normalizer["handle_chinese_chars"]),
        added_tokens=tuple(sorted(added, key=lambda token: token.id)),
    )


def stage_settings(vocabulary_directory: str) -> TokenizerSettings:
    """The settings of a vocabulary stage.

    Raises:
        InputError: its tokenizer.json is missing or damaged.
    """
    uri = storage.join(vocabulary_directory, TOKENIZER_NAME)
    if storage.file_size_bytes(uri) is None:
        raise InputError(
            f"{vocabulary_directory}: {TOKENIZER_NAME} is missing, and nothing else records the casing; rebuild this "
            "stage"
        )
    try:
        return settings_in(json.loads(storage.read_bytes(uri)))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{uri}: not the tokenizer of a vocabulary stage ({error!r}); rebuild this stage") from error
