"""Which spans of each row are masked together (SpanBERT; Joshi et al., 2020, section 3.1 and masking.py of its code).

Spans of complete words are drawn until the row has its number of predictions: a length from a geometric distribution
with p = 0.2, at most 10 words, and a first word. A span does not start at a masked token, does not cross [SEP], and is
cut where the row has enough. Vectorized over rows: each round draws one span for every row that needs more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from training.data.ordering import IntArray
from training.data.whole_words import Words

GEOMETRIC_P = 0.2
MOST_WORDS = 10
_MOST_ROUNDS = 1_000
"""A row of which half is predicted needs some tens; this many mean that its words are nearly all masked."""

_LENGTHS = np.arange(1, MOST_WORDS + 1)
_SHARES = GEOMETRIC_P * (1 - GEOMETRIC_P) ** (_LENGTHS - 1)
LENGTH_SHARES = _SHARES / _SHARES.sum()
"""Shares of the lengths 1 to MOST_WORDS."""
_LENGTH_BOUNDS = np.cumsum(LENGTH_SHARES)[:-1]

Draw = Callable[[IntArray, int], npt.NDArray[np.uint64]]
"""Rows and the number of a round to random numbers of 64 bits, one each."""


class Spans(NamedTuple):
    """positions: flat positions of the predicted tokens, ascending; anchors: where the span of each one starts."""

    positions: IntArray
    anchors: IntArray


def choose_spans(words: Words, num_tokens: int, wanted: IntArray, first_word: Draw, length: Draw) -> Spans:
    """Draw spans until each row has the tokens that it wants.

    Args:
        words: of concatenated rows, which have `num_tokens` tokens.
        wanted: [rows], tokens to choose, at most the tokens of the row's words.
        first_word, length: the random numbers of a round.
    """
    anchors = np.full(num_tokens, -1, dtype=np.int64)
    left = wanted.copy()
    first = np.searchsorted(words.rows, np.arange(len(wanted)))
    counts = np.searchsorted(words.rows, np.arange(len(wanted)), side="right") - first
    ends = words.starts + words.sizes
    chain_end = _chain_ends(words)
    for number in range(_MOST_ROUNDS):
        rows = np.flatnonzero(left)
        if not len(rows):
            break
        # The upper 32 bits times a count, without its remainder, is uniform to one in 2**16.
        high = first_word(rows, number) >> np.uint64(32)
        start_word = first[rows] + ((high * counts[rows].astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
        uniform = (length(rows, number) >> np.uint64(11)) * (1.0 / (1 << 53))
        num_words = np.searchsorted(_LENGTH_BOUNDS, uniform, side="right") + 1
        last_word = np.minimum(start_word + num_words - 1, chain_end[start_word])
        is_free = anchors[words.starts[start_word]] < 0
        _take(anchors, left, rows[is_free], words.starts[start_word[is_free]], ends[last_word[is_free]])
    else:
        _take_first(anchors, left, words)
    positions = np.flatnonzero(anchors >= 0)
    return Spans(positions, anchors[positions])


def _chain_ends(words: Words) -> IntArray:
    """For each word the last one that it is connected with, without a [SEP] or another row between."""
    if not len(words.starts):
        return np.empty(0, dtype=np.int64)
    ends = words.starts + words.sizes
    is_last = np.ones(len(ends), dtype=np.bool_)
    is_last[:-1] = (ends[:-1] != words.starts[1:]) | (words.rows[:-1] != words.rows[1:])
    lasts = np.flatnonzero(is_last)
    result: IntArray = lasts[np.searchsorted(lasts, np.arange(len(ends)))]
    return result


def _take(anchors: IntArray, left: IntArray, rows: IntArray, starts: IntArray, ends: IntArray) -> None:
    """Mark the free tokens of one span a row, the first ones where the row has less left than the span has."""
    sizes = ends - starts
    before = np.cumsum(sizes) - sizes
    tokens = np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes)
    owners = np.repeat(np.arange(len(rows)), sizes)
    is_new = anchors[tokens] < 0
    tokens, owners = tokens[is_new], owners[is_new]
    firsts = np.searchsorted(owners, np.arange(len(rows)))
    is_kept = np.arange(len(tokens)) - firsts[owners] < left[rows[owners]]
    tokens, owners = tokens[is_kept], owners[is_kept]
    anchors[tokens] = starts[owners]
    left[rows] -= np.bincount(owners, minlength=len(rows))


def _take_first(anchors: IntArray, left: IntArray, words: Words) -> None:
    """Fill the rows that random spans have not filled by their first free tokens."""
    for row in np.flatnonzero(left):
        own = words.rows == row
        ranges: list[Any] = [
            np.arange(start, start + size) for start, size in zip(words.starts[own], words.sizes[own], strict=True)
        ]
        tokens = np.concatenate(ranges)
        free = tokens[anchors[tokens] < 0][: left[row]]
        anchors[free] = free
        left[row] -= len(free)
