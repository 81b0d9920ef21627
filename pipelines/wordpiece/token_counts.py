"""What tokenising texts kept and lost: words, pieces, and the characters that are lost in [UNK].

Computed once for each distinct chunk of text (see `chunk_table`), when its ids are found; a batch of texts is then
counted by how often it has each chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipelines.results.coverage import fit_of


class TokenCounts(NamedTuple):
    """Counts over texts. Characters are those of words, without white space."""

    words: int = 0
    tokens: int = 0
    unk: int = 0
    characters: int = 0
    unk_characters: int = 0


class ChunkCounts:
    """`TokenCounts` of each numbered chunk: int32 [chunks, 5]."""

    def __init__(self, unk_id: int, is_continuation: NDArray[np.bool_]):
        """`is_continuation`: bool [vocabulary], true where a token starts with `##`."""
        self._unk_id = unk_id
        self._is_continuation = is_continuation
        self._size = 0
        self._counts = np.zeros((1 << 10, len(TokenCounts._fields)), np.int32)

    def append_plain(self, num_bytes: NDArray[np.int64], ids: NDArray[np.int32], counts: NDArray[np.int64]) -> None:
        """Add chunks as if each were one word of ASCII.

        Args:
            num_bytes: int64 [chunks], the length of each.
            ids: of all chunks, one after the other.
            counts: int64 [chunks], how many ids each has.
        """
        size = self._size + len(counts)
        while size > len(self._counts):
            self._counts = np.resize(self._counts, (2 * len(self._counts), self._counts.shape[1]))
        is_unk = np.zeros(len(counts), np.bool_)
        has_one = np.flatnonzero(counts == 1)
        is_unk[has_one] = ids[(np.cumsum(counts) - 1)[has_one]] == self._unk_id
        columns = (np.ones_like(counts), counts, is_unk, num_bytes, num_bytes * is_unk)
        self._counts[self._size : size] = np.stack(columns, axis=1)
        self._size = size

    def correct(
        self, numbers: NDArray[np.int64], chunks: Sequence[str], ids: Sequence[Sequence[int]], judge: Tokenizer
    ) -> None:
        """Count chunks that are not a single word of ASCII by the library's results.

        Args:
            numbers: int64 [chunks].
            chunks: their texts.
            ids: their ids, by `judge`, which is called again to find the characters behind an [UNK].
        """
        flat = np.fromiter((index for one in ids for index in one), np.int64)
        sizes = np.array([len(one) for one in ids], np.int64)
        ends = np.concatenate(([0], np.cumsum(sizes)))
        unk, continuations = (
            np.diff(np.concatenate(([0], np.cumsum(is_one)))[ends])
            for is_one in (flat == self._unk_id, self._is_continuation[flat])
        )
        unk_characters = np.zeros(len(chunks), np.int64)
        lossy = np.flatnonzero(unk)
        encodings = judge.encode_batch([chunks[number] for number in lossy.tolist()], add_special_tokens=False)
        for number, encoding in zip(lossy.tolist(), encodings, strict=True):
            places = zip(encoding.ids, encoding.offsets, strict=True)
            unk_characters[number] = sum(end - start for index, (start, end) in places if index == self._unk_id)
        characters = np.array([len(chunk) for chunk in chunks], np.int64)
        columns = (sizes - continuations, sizes, unk, characters, unk_characters)
        self._counts[numbers] = np.stack(columns, axis=1)

    def truncate(self, size: int) -> None:
        """Forget the chunks from number `size` on."""
        self._size = min(self._size, size)

    def of(self, chunks: NDArray[np.uint32]) -> TokenCounts:
        """The counts of texts, given as the numbers of all their chunks."""
        occurrences = np.zeros(self._size, np.int64)
        _count(chunks, occurrences)
        return self._added(occurrences)

    def weighted(self, chunks: NDArray[np.uint32], weights: NDArray[np.int64]) -> TokenCounts:
        """As `of`, where each chunk counts as many times as its weight says."""
        occurrences = np.zeros(self._size, np.int64)
        np.add.at(occurrences, chunks, weights)
        return self._added(occurrences)

    def _added(self, occurrences: NDArray[np.int64]) -> TokenCounts:
        columns = self._counts[: self._size].T
        return TokenCounts(*(int(np.dot(occurrences, column.astype(np.int64))) for column in columns))


@numba.njit(cache=True, nogil=True)
def _count(chunks: NDArray[np.uint32], occurrences: NDArray[np.int64]) -> None:
    for chunk in chunks:
        occurrences[chunk] += 1


def added(counts: Sequence[TokenCounts]) -> TokenCounts:
    """The sum of several counts."""
    return TokenCounts(*(sum(column) for column in zip(*counts, strict=True)))


def shares_of(counts: TokenCounts) -> dict[str, Any]:
    """The fields of `TextFit`: the counts, and the shares of interest."""
    return fit_of(**counts._asdict()).to_json()
