"""Loads the tokenizer of a Hugging Face directory, with the ids of `transformers.AutoTokenizer`.

`transformers` itself loads it, since its rules of precedence between tokenizer.json, tokenizer_config.json, vocab.txt,
added_tokens.json and special_tokens_map.json change between versions. Directories whose files contradict each other,
so that the ids may differ from training, are refused.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.workspace import (
    ADDED_TOKENS_NAME,
    CONFIG_NAME,
    MANIFEST_NAME,
    SPECIAL_TOKENS_MAP_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    VOCABULARY_NAME,
)
from pipelines.wordpiece.tokenizer_config import ROLES

_TOKENIZER_PARTS = ("normalizer", "pre_tokenizer", "model", "added_tokens")
"""The sections of tokenizer.json that determine the ids of a text."""
_READ_BY_TRANSFORMERS = (
    VOCABULARY_NAME,
    TOKENIZER_NAME,
    TOKENIZER_CONFIG_NAME,
    SPECIAL_TOKENS_MAP_NAME,
    ADDED_TOKENS_NAME,
    CONFIG_NAME,
)


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer as loaded by `transformers`.

    backend: without truncation and padding; reads "[MASK]" in a text as the token, as `transformers` does. roles: its
    special tokens by role, such as `cls_token`. splits_special_tokens: treat a special token in a text as plain text.
    """

    backend: Any
    roles: Mapping[str, str]
    splits_special_tokens: bool = False

    def for_texts(self) -> Any:
        """A copy that reads BERT's own special tokens in a text as text, and added ones as tokens.

        A "[MASK]" in a corpus is plain text; an added "<entity>" is meant to occur in texts.
        """
        contents = json.loads(self.backend.to_str())
        if not self.splits_special_tokens:
            for token in contents["added_tokens"]:
                token["special"] = token["content"] in self.roles.values()
        tokenizer = Tokenizer.from_str(json.dumps(contents))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def id_of(self, role: str) -> int | None:
        """The id of a special token, such as `cls_token`; None if there is no such token."""
        token_id: int | None = self.backend.token_to_id(self.roles[role])
        return token_id


def load_tokenizer(directory: str) -> LoadedTokenizer:
    """Load the tokenizer of a Hugging Face directory or of a vocabulary stage.

    Raises:
        InputError: there is none, `transformers` cannot load it, it is not BERT's, or its files contradict each other.
    """
    has_json = _has(directory, TOKENIZER_NAME)
    if not has_json and not _has(directory, VOCABULARY_NAME):
        raise InputError(f"{directory}: neither {TOKENIZER_NAME} nor {VOCABULARY_NAME}; give a directory with one")
    if not has_json and not _has(directory, TOKENIZER_CONFIG_NAME) and _is_own(directory):
        raise InputError(
            f"{directory}: {TOKENIZER_NAME} is missing, and nothing else records the casing; rebuild this stage"
        )
    without_config = has_json and not _has(directory, TOKENIZER_CONFIG_NAME)
    tokenizer = _by_tokenizer_json(directory) if without_config else _by_transformers(directory)
    _require_bert(directory, tokenizer)
    if has_json and _has(directory, VOCABULARY_NAME):
        _require_one_vocabulary(directory, tokenizer)
    return tokenizer


def parts_of(backend: Any) -> dict[str, Any]:
    """The parts of a `tokenizers` object that determine ids, for comparison."""
    contents = json.loads(backend.to_str())
    return {name: contents[name] for name in _TOKENIZER_PARTS}


def _by_transformers(directory: str) -> LoadedTokenizer:
    from transformers import AutoTokenizer, BertConfig

    # The class comes from config.json; a folder with only a vocabulary is treated as BERT's.
    config = {} if _has(directory, CONFIG_NAME) else {"config": BertConfig()}
    try:
        with _quiet_transformers(), _local(directory) as path:
            loaded = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False, **config)
        backend = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # transformers and tokenizers raise arbitrary exceptions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{directory}: transformers cannot load its tokenizer ({type(error).__name__}: {reason}); "
            "save it again with save_pretrained of a fast tokenizer"
        ) from error
    # Classes other than BERT's have no roles unless they are configured.
    roles = {role: str(getattr(loaded, role, None) or usual) for role, usual in ROLES.items()}
    return _uncut(LoadedTokenizer(backend, roles, bool(loaded.split_special_tokens)))


def _by_tokenizer_json(directory: str) -> LoadedTokenizer:
    """Load tokenizer.json alone; next to a config.json only if `transformers` would give the same ids.

    Without tokenizer_config.json `transformers` lower-cases, whatever tokenizer.json specifies. Earlier releases did
    not write the file, and their models were trained with tokenizer.json.
    """
    path = storage.join(directory, TOKENIZER_NAME)
    try:
        backend = Tokenizer.from_str(storage.read_bytes(path).decode())
    except Exception as error:  # the library raises Exception itself
        raise InputError(f"{path}: not a tokenizer ({error}); download or build it again") from error
    own = _uncut(LoadedTokenizer(backend, ROLES))
    if not _has(directory, CONFIG_NAME) or _is_own(directory):
        return own
    by_transformers = _by_transformers(directory)
    ours, theirs = (parts_of(each.backend) for each in (own, by_transformers))
    for name in _TOKENIZER_PARTS:
        if ours[name] != theirs[name]:
            raise InputError(
                f"{path}: without a {TOKENIZER_CONFIG_NAME} next to it transformers uses its own {name} instead of "
                f"this file's {_shown(ours[name])}; add the {TOKENIZER_CONFIG_NAME} that the model was trained with, "
                'such as {"tokenizer_class": "BertTokenizer", "do_lower_case": false}'
            )
    return by_transformers


def _uncut(tokenizer: LoadedTokenizer) -> LoadedTokenizer:
    tokenizer.backend.no_truncation()
    tokenizer.backend.no_padding()
    return tokenizer


def _shown(part: Any) -> str:
    text = json.dumps(part)
    return text if len(text) <= 120 else f"{text[:120]}..."


def _require_bert(directory: str, tokenizer: LoadedTokenizer) -> None:
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=False)
    for role in ("cls_token", "sep_token"):
        if tokenizer.roles[role] not in vocabulary:
            raise InputError(f"{directory}: the vocabulary lacks {tokenizer.roles[role]}; it is not a BERT vocabulary")
    if not _has(directory, CONFIG_NAME):
        return
    config = json.loads(storage.read_bytes(storage.join(directory, CONFIG_NAME)))
    size = config.get("vocab_size") if isinstance(config, dict) else None
    highest = max(tokenizer.backend.get_vocab(with_added_tokens=True).values())
    if isinstance(size, int) and highest >= size:
        token = tokenizer.backend.id_to_token(highest)
        raise InputError(
            f"{directory}: its vocabulary has the id {highest} ({token!r}), its config.json vocab_size = {size}; they "
            "belong to different models"
        )


def _require_one_vocabulary(directory: str, tokenizer: LoadedTokenizer) -> None:
    """`transformers` reads tokenizer.json and ignores changes in vocab.txt, such as filled [unused] entries."""
    path = storage.join(directory, VOCABULARY_NAME)
    lines = storage.read_bytes(path).decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    # A token on two lines has the later line's id, as in other readers.
    listed = {token: index for index, token in enumerate(lines)}
    backend = tokenizer.backend
    for token, index in listed.items():
        if token and backend.token_to_id(token) != index:
            raise InputError(
                f"{path}: line {index + 1} is {token!r}, but {TOKENIZER_NAME} has {backend.id_to_token(index)!r} at "
                f"{index}; {_remedy(directory)}"
            )
    for token, index in backend.get_vocab(with_added_tokens=False).items():
        if token not in listed:
            raise InputError(f"{path}: lacks {token!r}, which {TOKENIZER_NAME} has at {index}; {_remedy(directory)}")


def _remedy(directory: str) -> str:
    if _is_own(directory):
        return (
            f"restore {VOCABULARY_NAME} or rebuild the stage. To fill unused entries, copy the finished encoder, edit "
            f"its {VOCABULARY_NAME}, delete its {TOKENIZER_NAME}, and fine-tune with --encoder"
        )
    return f"{VOCABULARY_NAME} was edited: delete {TOKENIZER_NAME} to use the edit, or restore {VOCABULARY_NAME}"


def _is_own(directory: str) -> bool:
    """Whether a stage's manifest lists the files of this directory."""
    parent, _, name = directory.rstrip("/").rpartition("/")
    places = ((directory, ""), (parent or ".", f"{name}/"))
    for place, prefix in places:
        uri = storage.join(place, MANIFEST_NAME)
        if storage.file_size_bytes(uri) is None:
            continue
        try:
            files = json.loads(storage.read_bytes(uri))["files"]
            if any(file["name"] == f"{prefix}{VOCABULARY_NAME}" for file in files):
                return True
        except (ValueError, KeyError, TypeError):
            continue
    return False


def _has(directory: str, name: str) -> bool:
    return storage.file_size_bytes(storage.join(directory, name)) is not None


@contextmanager
def _local(directory: str) -> Iterator[str]:
    """The path of a local directory, or of a copy of a remote one's small files."""
    if storage.is_local(directory):
        yield storage.local_path(directory)
        return
    with tempfile.TemporaryDirectory() as copy:
        for name in _READ_BY_TRANSFORMERS:
            if _has(directory, name):
                storage.write_bytes(storage.join(copy, name), storage.read_bytes(storage.join(directory, name)))
        yield copy


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the advice of `transformers` between the lines of a stage."""
    logging: Any = importlib.import_module("transformers").utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
