"""Checks on a sample of the corpus that the tokenizer that consumers load is the one that built the examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, read_manifest, require_manifest
from pipelines.contract.schemas import CLS, CONTINUATION, SEP, SPLITS, UNK
from pipelines.contract.workspace import EXAMPLES, TOKENIZER_CONFIG_NAME, VOCABULARY, VOCABULARY_NAME
from pipelines.wordpiece.reference_tokenizer import build_text_tokenizer
from pipelines.wordpiece.tokenizer_settings import TokenizerSettings, stage_settings
from training.tokenizing.loading import load_tokenizer

SAMPLE_ROWS, SAMPLE_TEXTS = 256, 1024
"""Examples of each length and sentences of each split to compare; takes some hundredths of a second."""


def require_same_tokenizer(
    directory: str, vocabulary_directory: str, examples_directory: str, documents_directory: str | None = None
) -> None:
    """Compare the ids from a directory's tokenizer with those in the examples.

    Args:
        directory: of the tokenizer to check: an exported encoder, a teacher, or the vocabulary stage itself.
        vocabulary_directory: the stage that the examples were built with, whose tokenizer.json states the casing.
        examples_directory: the stage whose rows, converted back to words, must give the same ids.
        documents_directory: the stage whose sentences must give the same ids; skipped if it is None or does not
            exist.

    Raises:
        InputError: some text gives different ids, or a stage cannot be read.
    """
    tokenizer = load_tokenizer(directory).for_texts()
    require_manifest(vocabulary_directory, VOCABULARY, "clozeworks vocabulary")
    tokens = _tokens_of(vocabulary_directory)
    reference = _reference(tokens, stage_settings(vocabulary_directory))
    pair = _Pair(directory, tokenizer, reference)
    _compare_examples(pair, tokens, examples_directory)
    documents = None if documents_directory is None else read_manifest(documents_directory)
    if documents is not None and documents_directory is not None:
        _compare_documents(pair, documents_directory, documents)


class _Pair(NamedTuple):
    """The tokenizer of a directory, and the one that built the examples."""

    directory: str
    tokenizer: Any
    reference: Any

    def ids(self, texts: list[str]) -> Iterator[tuple[str, list[int], list[int]]]:
        """Each text with its ids by the tokenizer and by the reference."""
        ours, theirs = (
            each.encode_batch_fast(texts, add_special_tokens=False) for each in (self.tokenizer, self.reference)
        )
        for text, found, expected in zip(texts, ours, theirs, strict=True):
            yield text, found.ids, expected.ids


def _compare_examples(pair: _Pair, tokens: Sequence[str], examples_directory: str) -> None:
    """Encode words of examples again. Lower-casing is not detectable here, only in documents."""
    words: dict[str, list[int]] = {}
    for row in _rows(examples_directory):
        words |= words_of(row, tokens)
    reproduced = 0
    for word, found, expected in pair.ids(list(words)):
        if expected != words[word]:
            # Another word that equals this one only after cleaning.
            continue
        reproduced += 1
        if found != expected:
            raise InputError(_difference(pair.directory, word, found, expected, examples_directory))
    if reproduced < len(words) / 2:
        raise InputError(
            f"{examples_directory}: of {len(words)} words the workspace's vocabulary splits {len(words) - reproduced} "
            "differently; the examples were built with another one: rebuild them"
        )


def _compare_documents(pair: _Pair, documents_directory: str, documents: Manifest) -> None:
    for split in SPLITS:
        paths = [storage.join(documents_directory, file.name) for file in documents.files_of(split) if file.rows]
        texts = _sentences(paths[0]) if paths else []
        for text, found, expected in pair.ids(texts):
            if found != expected:
                raise InputError(_difference(pair.directory, text, found, expected, documents_directory))


def words_of(input_ids: npt.NDArray[Any], tokens: Sequence[str]) -> dict[str, list[int]]:
    """The words of a row of examples with their ids.

    Skips special tokens and words that may be truncated at a segment's end: the row's pieces before its first word,
    and a segment's last word.
    """
    words: dict[str, list[int]] = {}
    current: list[int] = []
    for token_id in input_ids.tolist():
        token = tokens[token_id]
        if token.startswith(CONTINUATION) and len(token) > len(CONTINUATION):
            if current:
                current.append(token_id)
            continue
        is_special = token in (CLS, SEP, UNK)
        if current and token != SEP:
            words[_spelt(current, tokens)] = current
        current = [] if is_special else [token_id]
    return words


def _spelt(ids: Sequence[int], tokens: Sequence[str]) -> str:
    first, *others = (tokens[index] for index in ids)
    return first + "".join(token.removeprefix(CONTINUATION) for token in others)


def _rows(examples_directory: str) -> Iterator[npt.NDArray[Any]]:
    """Some rows of each length, with masks removed."""
    examples = require_manifest(examples_directory, EXAMPLES, "clozeworks examples")
    for directory in sorted({file.name.rpartition("/")[0] for file in examples.files}):
        names = [file.name for file in examples.files_of("train", directory) if file.rows]
        for row in _first_rows(storage.join(examples_directory, names[0]), SAMPLE_ROWS) if names else []:
            input_ids = np.array(row["input_ids"], dtype=np.int64)
            input_ids[row["masked_lm_positions"]] = row["masked_lm_ids"]
            yield input_ids


def _sentences(path: str) -> list[str]:
    sentences: list[str] = []
    for row in _first_rows(path, SAMPLE_TEXTS):
        sentences += row["sentences"][: SAMPLE_TEXTS - len(sentences)]
    return sentences


def _first_rows(path: str, count: int) -> list[dict[str, Any]]:
    try:
        with storage.open_seekable(path) as source:
            reader = pa.ipc.open_file(source)
            rows: list[dict[str, Any]] = reader.get_batch(0).slice(0, count).to_pylist()
            return rows
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable Arrow file ({error}); rebuild the stage") from error


def _tokens_of(vocabulary_directory: str) -> list[str]:
    return storage.read_bytes(storage.join(vocabulary_directory, VOCABULARY_NAME)).decode().split("\n")[:-1]


def _reference(tokens: Sequence[str], settings: TokenizerSettings) -> Any:
    """The tokenizer that built the examples."""
    return build_text_tokenizer(tokens, *settings)


def _difference(directory: str, text: str, found: list[int], expected: list[int], source: str) -> str:
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    index = next(
        (place for place, (one, other) in enumerate(zip(expected, found, strict=False)) if one != other),
        min(len(expected), len(found)),
    )
    return (
        f"{directory}: its tokenizer gives {shown!r} other ids than {source} has (token {index + 1}: "
        f"{found[index : index + 1]} instead of {expected[index : index + 1]}); its vocabulary, or the casing in its "
        f"{TOKENIZER_CONFIG_NAME}, differs from that of the examples: restore it, or rebuild vocabulary and examples"
    )
