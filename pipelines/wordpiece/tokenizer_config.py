"""Contents of tokenizer_config.json and special_tokens_map.json for a BERT tokenizer, in keys that all readers know.

`transformers` takes casing and accents from tokenizer_config.json alone: without the file it lower-cases, whatever
tokenizer.json says, and has no maximum length. Readers for ONNX models also require special_tokens_map.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.contract.schemas import CLS, MASK, PAD, SEP, UNK

BERT_TOKENIZER, ANY_TOKENIZER = "BertTokenizer", "PreTrainedTokenizerFast"
"""Classes of `transformers`: the first is made from settings, the second from tokenizer.json as it is."""

ROLES: Mapping[str, str] = {
    "cls_token": CLS,
    "mask_token": MASK,
    "pad_token": PAD,
    "sep_token": SEP,
    "unk_token": UNK,
}
"""BERT's own special tokens by role."""


def bert_settings(
    lowercase: bool, strip_accents: bool | None, tokenize_chinese_chars: bool = True
) -> dict[str, bool | None]:
    """Settings of a BertTokenizer under the names of tokenizer_config.json."""
    return {
        "do_lower_case": lowercase,
        "strip_accents": strip_accents,
        "tokenize_chinese_chars": tokenize_chinese_chars,
    }


def tokenizer_config(
    tokenizer_class: str,
    settings: Mapping[str, bool | None],
    roles: Mapping[str, str],
    added_tokens: Sequence[Mapping[str, Any]],
    model_max_length: int | None,
) -> dict[str, Any]:
    """The contents of tokenizer_config.json.

    Args:
        tokenizer_class: BERT_TOKENIZER or ANY_TOKENIZER.
        settings: what `bert_settings` gives; empty for ANY_TOKENIZER.
        roles: special tokens by role, as ROLES.
        added_tokens: the list of this name in tokenizer.json.
        model_max_length: the model's positions; None if there is no model yet.
    """
    decoder = {
        str(token["id"]): {name: value for name, value in sorted(token.items()) if name != "id"}
        for token in sorted(added_tokens, key=lambda token: int(token["id"]))
    }
    additional = [
        token["content"] for token in decoder.values() if token["special"] and token["content"] not in roles.values()
    ]
    return {
        "added_tokens_decoder": decoder,
        **({"additional_special_tokens": additional} if additional else {}),
        "clean_up_tokenization_spaces": True,
        **settings,
        **({} if model_max_length is None else {"model_max_length": model_max_length}),
        **dict(sorted(roles.items())),
        "tokenizer_class": tokenizer_class,
    }


def special_tokens_map(config: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of special_tokens_map.json, from those of tokenizer_config.json."""
    return {name: config[name] for name in (*sorted(ROLES), "additional_special_tokens") if name in config}


def as_file(contents: Mapping[str, Any]) -> bytes:
    """JSON as it is written into these files."""
    return json.dumps(contents, indent=2, ensure_ascii=False).encode() + b"\n"
