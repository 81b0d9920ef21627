"""The order in which examples are read: a pure function of (seed, epoch, position), the same for any number of ranks.

Rows are grouped into blocks of consecutive rows, the blocks are shuffled, several neighbouring blocks form a window,
and rows are shuffled within their window. So reads stay sequential (a block is one run of bytes on disk), memory holds
one window, and any position is reached without reading those before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def _key_bits(*key: int | str) -> int:
    return int.from_bytes(hashlib.sha256(":".join(map(str, key)).encode()).digest()[:16], "little")


def keyed_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on `key` alone, for generators that are seeded by a number."""
    return _key_bits(*key) >> 65


def keyed_permutation(count: int, *key: int | str) -> IntArray:
    """A permutation of range(count) that depends on `key` alone.

    Sorts the raw words of a Philox counter: unlike NumPy's `permutation`, these never change between versions.
    """
    words = np.random.Philox(key=_key_bits(*key)).random_raw(count)
    return np.argsort(words, kind="stable")


@dataclass(frozen=True)
class Window:
    """Rows that are shuffled together.

    first_position: the window's position in its epoch. blocks: (first row, row after the last), in reading order.
    order: [rows of the window], indices into the blocks' concatenated rows, in shuffled order.
    """

    epoch: int
    index: int
    first_position: int
    blocks: tuple[tuple[int, int], ...]
    order: IntArray

    def laid_out(self) -> IntArray:
        """Row numbers of the data set in reading order."""
        return np.concatenate([np.arange(first, last) for first, last in self.blocks])

    def rows(self) -> IntArray:
        """Row numbers of the data set in the window's shuffled order."""
        return self.laid_out()[self.order]


@dataclass(frozen=True)
class GlobalOrder:
    """Shuffled order of `num_rows` rows, epoch after epoch.

    Args:
        num_rows: rows of the data set, at least 1.
        seed, stream: key of all shuffles; `stream` distinguishes the data sets of one run.
        block_rows: consecutive rows that are read together.
        window_blocks: blocks whose rows are shuffled together.
    """

    num_rows: int
    seed: int
    stream: str = ""
    block_rows: int = 1_024
    window_blocks: int = 32

    def window_at(self, position: int) -> Window:
        """The window that holds the sample at a global position, counted over all epochs from 0."""
        epoch, within_epoch = divmod(position, self.num_rows)
        starts = self._window_starts(epoch)
        index = int(np.searchsorted(starts, within_epoch, side="right")) - 1
        return self._window(epoch, index)

    def blocks_from(self, position: int, num_windows: int) -> Iterator[tuple[tuple[int, int], ...]]:
        """The blocks of the window at a position and of those after it, also of the next epoch."""
        for _ in range(num_windows):
            window = self.window_at(position)
            yield window.blocks
            position += window.first_position + len(window.order) - position % self.num_rows

    def _window(self, epoch: int, index: int) -> Window:
        chosen = self._block_order(epoch)[index * self.window_blocks : (index + 1) * self.window_blocks]
        firsts = chosen * self.block_rows
        lasts = np.minimum(firsts + self.block_rows, self.num_rows)
        order = keyed_permutation(int((lasts - firsts).sum()), self.seed, self.stream, "rows", epoch, index)
        blocks = tuple((int(first), int(last)) for first, last in zip(firsts, lasts, strict=True))
        return Window(epoch, index, int(self._window_starts(epoch)[index]), blocks, order)

    def _block_order(self, epoch: int) -> IntArray:
        return _block_order(-(-self.num_rows // self.block_rows), self.seed, self.stream, epoch)

    def _window_starts(self, epoch: int) -> IntArray:
        blocks = self._block_order(epoch)
        sizes = np.minimum(self.block_rows, self.num_rows - blocks * self.block_rows)
        starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        return starts[:: self.window_blocks]

    def rows(self, start: int, count: int) -> IntArray:
        """Row numbers at positions start to start + count; for tests and tools, training reads window by window."""
        pieces: list[IntArray] = []
        while count > 0:
            window = self.window_at(start)
            offset = start % self.num_rows - window.first_position
            piece = window.rows()[offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)


@lru_cache(maxsize=8)
def _block_order(num_blocks: int, seed: int, stream: str, epoch: int) -> IntArray:
    return keyed_permutation(num_blocks, seed, stream, "blocks", epoch)


def share_of(total: int, part: int, parts: int) -> tuple[int, int]:
    """First and past-the-last index of one part, where parts differ by at most one: ranks, then micro-batches."""
    return total * part // parts, total * (part + 1) // parts


def dealt_rows(lengths: IntArray, part: int, parts: int) -> IntArray:
    """Rows of a batch that one part gets, longest first: dealt by length in alternating direction.

    The parts (micro-batches of all ranks) differ by at most one row, and in tokens by at most one row's length, so
    no rank waits for another with longer rows.
    """
    descending = np.argsort(-lengths, kind="stable")
    rounds = np.arange(-(-len(lengths) // parts))
    turns = rounds * parts + np.where(rounds % 2 == 0, part, parts - 1 - part)
    return descending[turns[turns < len(lengths)]]
