"""Add the most useful words of a corpus to a vocabulary that exists.

A word's use is its count times the pieces that it saves, which are all of its pieces but one; a word that is [UNK]
saves as many as it has characters, since all of them are lost. Uses are those with the vocabulary as it was found, so a
word's rank does not depend on the others. Ties go to the word that is first by code points. As in BERT's own
advice for domain words (README of google-research/bert, "Learning a new WordPiece vocabulary"), `[unusedN]` entries
are replaced first; only then entries are appended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.contract.errors import InputError
from pipelines.contract.schemas import UNK
from pipelines.vocabularies.reading import unused_places
from pipelines.wordpiece.reference_tokenizer import MAX_CHARACTERS_PER_WORD, build_normalizer
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.tokenizer_settings import TokenizerSettings


class Extension(NamedTuple):
    """An extended vocabulary.

    tokens: by id, equal to those before but for the words added. replaced: the word that stands in for each
    `[unusedN]` entry, in order. appended: how many of the words are at the end.
    """

    tokens: list[str]
    replaced: dict[str, str]
    appended: int


def extend(
    tokens: Sequence[str], settings: TokenizerSettings, words: pa.Array, counts: NDArray[np.int64], number: int
) -> Extension:
    """Add words to a vocabulary.

    Args:
        tokens: the vocabulary in id order.
        words: Arrow `string` array of distinct words from BERT's pre-tokeniser, by code points.
        counts: int64 [words], how often each occurs.
        number: how many words to add.

    Raises:
        InputError: the corpus has fewer words that would save a piece.
    """
    useful = _by_use(tokens, settings, words, counts)
    added = [word for _, word in zip(range(number), useful, strict=False)]
    if len(added) < number:
        raise InputError(
            f"vocabulary.extend = {number:,}: only {len(added):,} words of the training documents would save a piece; "
            "lower it, or give documents.sources more text"
        )
    result, replaced = list(tokens), dict[str, str]()
    for place, word in zip(unused_places(tokens, settings), added, strict=False):
        replaced[result[place]], result[place] = word, word
    appended = added[len(replaced) :]
    return Extension([*result, *appended], replaced, len(appended))


def restored(tokens: Sequence[str], replaced: dict[str, str], appended: int) -> list[str]:
    """The vocabulary before it was extended."""
    names = {word: name for name, word in replaced.items()}
    return [names.get(token, token) for token in tokens[: len(tokens) - appended]]


def _by_use(
    tokens: Sequence[str], settings: TokenizerSettings, words: pa.Array, counts: NDArray[np.int64]
) -> Iterator[str]:
    """Words that would save a piece, the most useful first."""
    tokenized = WordPieceTokenizer(tokens, *settings[:3]).tokenize(words)
    pieces = np.diff(tokenized.offsets)
    lengths = pc.utf8_length(words).to_numpy(zero_copy_only=False).astype(np.int64)
    is_unk = pieces == 1
    is_unk[is_unk] = tokenized.input_ids[tokenized.offsets[:-1][is_unk]] == tokens.index(UNK)
    saved = np.where(is_unk, lengths, pieces - 1)
    use = np.where(lengths <= MAX_CHARACTERS_PER_WORD, saved * counts, 0)
    # An added token is found before words are split, so a word that holds one is never seen as a word.
    normalizer = build_normalizer(*settings[:3])
    held = {
        normalizer.normalize_str(token.content) if token.normalized else token.content
        for token in settings.added_tokens
    }
    for place in np.lexsort((np.arange(len(use)), -use)).tolist():
        if use[place] == 0:
            return
        word = words[place].as_py()
        if not any(content in word for content in held):
            yield word
