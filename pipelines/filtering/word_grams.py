"""The n-grams of a text's words that repeat, and which of its words they cover; compared by 64-bit hashes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_ODD = np.uint64(0x9E37_79B9_7F4A_7C15)


class _Repeats(NamedTuple):
    """The n-grams of one size that occur more than once: each place, its hash, and how often that occurs."""

    places: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    counts: NDArray[np.int64]


class WordGrams:
    """N-grams of one sequence of words, as places in it.

    An n-gram that repeats begins with one word less that repeats, so each size looks only at the places that the size
    before has left.
    """

    def __init__(self, words: Sequence[str]):
        num_words = len(words)
        # A word's number is its first place, so equal texts have equal hashes in every process.
        first_place: dict[str, int] = {}
        numbers = np.fromiter(map(first_place.setdefault, words, range(num_words)), np.int64, num_words)
        self._values = _mixed(numbers.astype(np.uint64))
        self._ends = np.fromiter(accumulate(map(len, words), initial=0), np.int64, num_words + 1)
        counts = np.bincount(numbers)[numbers] if num_words else numbers
        places = np.flatnonzero(counts > 1)
        self._repeats = [_Repeats(places, self._values[places], counts[places])]

    def top_share(self, size: int) -> float:
        """Share of the words' characters that the most frequent n-gram covers; 0 if each n-gram occurs once."""
        places, hashes, counts = self._repeats_of(size)
        if not len(places):
            return 0.0
        lengths = np.where(counts == counts.max(), self._ends[places + size] - self._ends[places], -1)
        return self._share_covered(places[hashes == hashes[lengths.argmax()]], size)

    def duplicate_share(self, size: int) -> float:
        """Share of the words' characters in n-grams that occur more than once, each character counted once."""
        places = self._repeats_of(size).places
        return self._share_covered(places, size) if len(places) else 0.0

    def _repeats_of(self, size: int) -> _Repeats:
        while len(self._repeats) < size:
            self._repeats.append(self._longer(self._repeats[-1], len(self._repeats)))
        return self._repeats[size - 1]

    def _longer(self, shorter: _Repeats, size: int) -> _Repeats:
        """The repeats of one word more than `size`."""
        places = shorter.places
        fits = slice(0, int(np.searchsorted(places, len(self._values) - size)))
        places = places[fits]
        hashes = shorter.hashes[fits] * _ODD + self._values[places + size]
        order = np.argsort(hashes)
        ordered = hashes[order]
        is_first = np.ones(len(ordered) + 1, bool)
        np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:-1])
        counts_in_order = np.diff(np.flatnonzero(is_first))
        counts = np.empty(len(ordered), np.int64)
        counts[order] = np.repeat(counts_in_order, counts_in_order)
        repeats = counts > 1
        return _Repeats(places[repeats], hashes[repeats], counts[repeats])

    def _share_covered(self, places: NDArray[np.int64], size: int) -> float:
        """Share of characters in the n-grams at ascending places, which may overlap."""
        starts = places.copy()
        starts[1:] = np.maximum(starts[1:], places[:-1] + size)
        return int((self._ends[places + size] - self._ends[starts]).sum()) / int(self._ends[-1])


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter small numbers over 64 bits."""
    values = (values + np.uint64(1)) * _ODD
    values = (values ^ (values >> np.uint64(32))) * _ODD
    return values ^ (values >> np.uint64(29))
