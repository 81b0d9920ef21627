"""Encodes sentences as rows of token ids; each word of the file is labelled once, at its first sub-token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from training.bert.packing import IntArray
from training.finetuning.text import EncodedText, TextEncoder
from training.tagging.reading import TaggedText

TokenIds = npt.NDArray[np.uint32]

_TOO_LONG_FOR_WORDPIECE = "x" * 1_000


@dataclass(frozen=True)
class TaggingRows:
    """Encoded rows, in the order of the file's words.

    word_positions: one array per row, positions of the first sub-tokens of its labelled words.
    first_words: [rows + 1], the number in the file of a row's first labelled word.
    """

    text: EncodedText
    word_positions: list[IntArray]
    first_words: IntArray

    def num_words(self, rows: IntArray) -> int:
        """Number of words labelled by these rows."""
        return int((self.first_words[rows + 1] - self.first_words[rows]).sum())

    def words(self, rows: IntArray) -> IntArray:
        """Numbers of the words labelled by these rows, in order."""
        return np.concatenate([np.arange(self.first_words[row], self.first_words[row + 1]) for row in rows])

    def positions(self, rows: IntArray, first_tokens: IntArray) -> IntArray:
        """Positions of their first sub-tokens among packed tokens; first_tokens: the start of each row."""
        return np.concatenate(
            [first + self.word_positions[row] for row, first in zip(rows, first_tokens.tolist(), strict=True)]
        )


def encode_words(encoder: TextEncoder, text: TaggedText, max_seq_length: int, document_context: bool) -> TaggingRows:
    """Tokenize word by word and build rows `[CLS] ... [SEP]` of one segment.

    A row holds a sentence or, if it is longer than a row, a run of its words. With `document_context` the remaining
    room is filled with complete words before and after, within the document ("we include the maximal document context
    provided by the data", paper, section 5.3); without it only parts of long sentences are filled, from their own
    sentence. Only the first sub-token of a row's own words is labelled, never context.
    """
    cls, sep, sub_tokens = _tokenise(encoder, text)
    room = max_seq_length - 2
    ids: list[TokenIds] = []
    positions: list[IntArray] = []
    for words, sentence_lengths in _streams(text, document_context):
        pieces = [sub_tokens[word][:room] for word in words]
        offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        tokens = np.concatenate(pieces)
        first_word = 0
        for length in sentence_lengths:
            for first, last in _runs(offsets, first_word, first_word + length, room):
                left, right = _with_context(offsets, first, last, room)
                ids.append(np.concatenate([cls, tokens[offsets[left] : offsets[right]], sep]))
                positions.append(offsets[first:last] - offsets[left] + 1)
            first_word += length
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    first_words = np.concatenate([[0], np.cumsum([len(row) for row in positions])]).astype(np.int64)
    return TaggingRows(EncodedText(ids, lengths, lengths.copy()), positions, first_words)


def _tokenise(encoder: TextEncoder, text: TaggedText) -> tuple[TokenIds, TokenIds, dict[str, TokenIds]]:
    """[CLS], [SEP], and each distinct word's sub-tokens, at least one."""
    distinct = sorted({word for sentence in text.sentences for word in sentence.words})
    # Longer than any word, so nothing is truncated. The last one returns the id of [UNK].
    encoded = encoder.encode([*distinct, _TOO_LONG_FOR_WORDPIECE], None, 1 << 30).input_ids
    cls, unknown, sep = np.split(encoded.pop(), 3)
    # The tokenizer may drop a word completely, such as control characters; it must be labelled nevertheless.
    return cls, sep, {word: row[1:-1] if len(row) > 2 else unknown for word, row in zip(distinct, encoded, strict=True)}


def _streams(text: TaggedText, document_context: bool) -> Iterator[tuple[list[str], list[int]]]:
    """Runs of words to take context from, each with the lengths of its sentences."""
    if not document_context:
        for sentence in text.sentences:
            yield list(sentence.words), [len(sentence.words)]
        return
    for _, group in groupby(text.sentences, key=lambda sentence: sentence.document):
        sentences = list(group)
        yield [word for each in sentences for word in each.words], [len(each.words) for each in sentences]


def _runs(offsets: IntArray, first: int, last: int, room: int) -> Iterator[tuple[int, int]]:
    """The words first to last at once or, if they exceed the room, in runs of at most half of it, at least one word.

    The other half is for context, so that no word is at an artificial border.
    """
    if offsets[last] - offsets[first] <= room:
        yield first, last
        return
    while first < last:
        end = int(np.searchsorted(offsets, offsets[first] + room // 2, side="right")) - 1
        end = min(max(end, first + 1), last)
        yield first, end
        first = end


def _with_context(offsets: IntArray, first: int, last: int, room: int) -> tuple[int, int]:
    """The words around first to last that fill the room: equal tokens on both sides, or more if one side ends."""
    spare = room - int(offsets[last] - offsets[first])
    after = min(int(offsets[-1] - offsets[last]), spare - spare // 2)
    left = _leftmost(offsets, int(offsets[first]) - (spare - after))
    spare -= int(offsets[first] - offsets[left])
    right = int(np.searchsorted(offsets, offsets[last] + spare, side="right")) - 1
    return left, min(right, len(offsets) - 1)


def _leftmost(offsets: IntArray, token: int) -> int:
    return int(np.searchsorted(offsets, max(token, 0), side="left"))
