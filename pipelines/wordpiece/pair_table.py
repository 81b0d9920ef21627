"""Counts of adjacent symbol pairs in many words, kept up to date while pairs are merged.

Each symbol of each distinct word has a slot in one flat array, linked to its neighbours within the word. A hash table
gives every pair a number; per pair there is its count (weighted by the words' counts) and a list of the slots where it
was seen, some of which may be stale. A heap yields the most frequent pair: its entries are checked when popped, because
a count only shrinks between a push and a pop. Merging takes time in proportion to the occurrences merged.
"""

from __future__ import annotations

from typing import TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from pipelines.seeding import mix

_NUM_PAIRS, _NUM_NODES, _HEAP_SIZE = 0, 1, 2
_NONE = -1

ScalarT = TypeVar("ScalarT", bound=np.generic)


class PairTable:
    """All pairs of the words' symbols.

    `symbols`: int32 [slots], the words' symbols one after the other; `word_offsets`: int64 [words + 1];
    `counts`: int64 [words].
    """

    def __init__(self, symbols: NDArray[np.int32], word_offsets: NDArray[np.int64], counts: NDArray[np.int64]):
        num_slots = len(symbols)
        self._symbols = symbols
        self._weights = np.repeat(counts, np.diff(word_offsets))
        self._previous = np.arange(-1, num_slots - 1, dtype=np.int32)
        self._following = np.arange(1, num_slots + 1, dtype=np.int32)
        lengths = np.diff(word_offsets)
        filled = lengths > 0
        self._previous[word_offsets[:-1][filled]] = _NONE
        self._following[word_offsets[1:][filled] - 1] = _NONE
        # A merge removes one slot and adds at most two occurrences, so three per slot always suffice.
        self._node_slot = np.empty(3 * num_slots, np.int32)
        self._node_next = np.empty(3 * num_slots, np.int32)
        self._sizes = np.zeros(3, np.int64)
        self._table = np.full(1 << 10, _NONE, np.int32)
        self._left, self._right = np.empty(0, np.int32), np.empty(0, np.int32)
        self._count = np.empty(0, np.int64)
        self._first_node, self._last_node = np.empty(0, np.int32), np.empty(0, np.int32)
        self._num_nodes = np.empty(0, np.int32)
        self._heap_count, self._heap_pair = np.empty(0, np.int64), np.empty(0, np.int32)
        block = 1 << 16
        for start in range(0, num_slots, block):
            self._make_room(block)
            self._count_block(start, min(start + block, num_slots))
        self._push(np.arange(self._sizes[_NUM_PAIRS], dtype=np.int32))

    def pop_most_frequent(self) -> tuple[int, int, int]:
        """The pair with the highest count and that count (0 if no pair is left); ties: the smaller ids."""
        left, right, count = _pop(self._heap_count, self._heap_pair, self._sizes, self._count, self._left, self._right)
        return int(left), int(right), int(count)

    def merge(self, left: int, right: int, merged: int) -> None:
        """Replace each occurrence of a pair by the symbol `merged`, from left to right."""
        pair = int(_find(self._table, self._left, self._right, left, right))
        assert pair >= 0
        self._make_room(2 * int(self._num_nodes[pair]))
        grown = _merge(
            pair,
            merged,
            self._symbols,
            self._weights,
            self._previous,
            self._following,
            self._node_slot,
            self._node_next,
            self._sizes,
            self._table,
            self._left,
            self._right,
            self._count,
            self._first_node,
            self._last_node,
            self._num_nodes,
        )
        self._push(grown)

    def _count_block(self, start: int, stop: int) -> None:
        _count_pairs(
            start,
            stop,
            self._symbols,
            self._weights,
            self._following,
            self._node_slot,
            self._node_next,
            self._sizes,
            self._table,
            self._left,
            self._right,
            self._count,
            self._first_node,
            self._last_node,
            self._num_nodes,
        )

    def _push(self, pairs: NDArray[np.int32]) -> None:
        needed = int(self._sizes[_HEAP_SIZE]) + len(pairs)
        if needed > len(self._heap_count):
            self._heap_count = _extended(self._heap_count, 2 * needed)
            self._heap_pair = _extended(self._heap_pair, 2 * needed)
        _push_all(pairs, self._heap_count, self._heap_pair, self._sizes, self._count, self._left, self._right)

    def _make_room(self, more_pairs: int) -> None:
        num_pairs = int(self._sizes[_NUM_PAIRS])
        needed = num_pairs + more_pairs
        if needed > len(self._left):
            self._left, self._right = _extended(self._left, 2 * needed), _extended(self._right, 2 * needed)
            self._count = _extended(self._count, 2 * needed)
            self._first_node = _extended(self._first_node, 2 * needed)
            self._last_node = _extended(self._last_node, 2 * needed)
            self._num_nodes = _extended(self._num_nodes, 2 * needed)
        if 2 * needed > len(self._table):
            self._table = np.full(1 << (4 * needed - 1).bit_length(), _NONE, np.int32)
            _insert_all(self._table, self._left, self._right, num_pairs)


def _extended(array: NDArray[ScalarT], size: int) -> NDArray[ScalarT]:
    longer = np.empty(size, array.dtype)
    longer[: len(array)] = array
    return longer


@numba.njit(cache=True, inline="always")
def _home(table: NDArray[np.int32], left: int, right: int) -> np.int64:
    key = (np.uint64(left) << np.uint64(32)) | np.uint64(right)
    return np.int64(mix(key) & np.uint64(len(table) - 1))


@numba.njit(cache=True)
def _find(
    table: NDArray[np.int32], lefts: NDArray[np.int32], rights: NDArray[np.int32], left: int, right: int
) -> np.int32:
    """The number of a pair, or -1."""
    slot = _home(table, left, right)
    while table[slot] >= 0:
        pair = table[slot]
        if lefts[pair] == left and rights[pair] == right:
            return np.int32(pair)
        slot = (slot + 1) & (len(table) - 1)
    return np.int32(_NONE)


@numba.njit(cache=True)
def _insert_all(table: NDArray[np.int32], lefts: NDArray[np.int32], rights: NDArray[np.int32], num_pairs: int) -> None:
    for pair in range(num_pairs):
        slot = _home(table, lefts[pair], rights[pair])
        while table[slot] >= 0:
            slot = (slot + 1) & (len(table) - 1)
        table[slot] = pair


@numba.njit(cache=True)
def _add_occurrence(
    left: int,
    right: int,
    weight: int,
    at_slot: int,
    node_slot: NDArray[np.int32],
    node_next: NDArray[np.int32],
    sizes: NDArray[np.int64],
    table: NDArray[np.int32],
    lefts: NDArray[np.int32],
    rights: NDArray[np.int32],
    count: NDArray[np.int64],
    first_node: NDArray[np.int32],
    last_node: NDArray[np.int32],
    num_nodes: NDArray[np.int32],
) -> int:
    """Count one more occurrence of a pair, at a slot; a new pair gets the next number."""
    slot = _home(table, left, right)
    pair = _NONE
    while table[slot] >= 0:
        pair = table[slot]
        if lefts[pair] == left and rights[pair] == right:
            break
        pair = _NONE
        slot = (slot + 1) & (len(table) - 1)
    node = sizes[_NUM_NODES]
    sizes[_NUM_NODES] += 1
    node_slot[node] = at_slot
    node_next[node] = _NONE
    if pair < 0:
        pair = sizes[_NUM_PAIRS]
        sizes[_NUM_PAIRS] += 1
        table[slot] = pair
        lefts[pair], rights[pair] = left, right
        count[pair] = 0
        num_nodes[pair] = 0
        first_node[pair] = node
    elif num_nodes[pair] == 0:
        first_node[pair] = node
    else:
        node_next[last_node[pair]] = node
    last_node[pair] = node
    num_nodes[pair] += 1
    count[pair] += weight
    return pair


@numba.njit(cache=True)
def _count_pairs(
    start: int,
    stop: int,
    symbols: NDArray[np.int32],
    weights: NDArray[np.int64],
    following: NDArray[np.int32],
    node_slot: NDArray[np.int32],
    node_next: NDArray[np.int32],
    sizes: NDArray[np.int64],
    table: NDArray[np.int32],
    lefts: NDArray[np.int32],
    rights: NDArray[np.int32],
    count: NDArray[np.int64],
    first_node: NDArray[np.int32],
    last_node: NDArray[np.int32],
    num_nodes: NDArray[np.int32],
) -> None:
    for slot in range(start, stop):
        after = following[slot]
        if after >= 0:
            _add_occurrence(
                symbols[slot], symbols[after], weights[slot], slot, node_slot, node_next, sizes, table, lefts, rights,
                count, first_node, last_node, num_nodes,
            )  # fmt: skip


@numba.njit(cache=True)
def _merge(
    pair: int,
    merged: int,
    symbols: NDArray[np.int32],
    weights: NDArray[np.int64],
    previous: NDArray[np.int32],
    following: NDArray[np.int32],
    node_slot: NDArray[np.int32],
    node_next: NDArray[np.int32],
    sizes: NDArray[np.int64],
    table: NDArray[np.int32],
    lefts: NDArray[np.int32],
    rights: NDArray[np.int32],
    count: NDArray[np.int64],
    first_node: NDArray[np.int32],
    last_node: NDArray[np.int32],
    num_nodes: NDArray[np.int32],
) -> NDArray[np.int32]:
    """Merge all occurrences of a pair; returns the pairs that became more frequent."""
    # Collect the slots where the pair was seen.
    left, right = lefts[pair], rights[pair]
    slots = np.empty(num_nodes[pair], np.int32)
    node = first_node[pair]
    for index in range(len(slots)):
        slots[index] = node_slot[node]
        node = node_next[node]
    # In "aaa" the order of merges matters, and a reused id can bring slots out of order.
    slots.sort()
    num_nodes[pair] = 0
    grown = np.empty(2 * len(slots), np.int32)
    num_grown = 0
    for slot in slots:
        # Skip stale slots.
        after = following[slot]
        if symbols[slot] != left or after < 0 or symbols[after] != right:
            continue
        # Replace the pairs with both neighbours by those with the merged symbol, then unlink the right slot.
        weight = weights[slot]
        before, behind = previous[slot], following[after]
        if before >= 0:
            count[_find(table, lefts, rights, symbols[before], left)] -= weight
            grown[num_grown] = _add_occurrence(
                symbols[before], merged, weight, before, node_slot, node_next, sizes, table, lefts, rights,
                count, first_node, last_node, num_nodes,
            )  # fmt: skip
            num_grown += 1
        if behind >= 0:
            count[_find(table, lefts, rights, right, symbols[behind])] -= weight
            grown[num_grown] = _add_occurrence(
                merged, symbols[behind], weight, slot, node_slot, node_next, sizes, table, lefts, rights,
                count, first_node, last_node, num_nodes,
            )  # fmt: skip
            num_grown += 1
            previous[behind] = slot
        symbols[slot], symbols[after] = merged, _NONE
        following[slot] = behind
    count[pair] = 0
    return np.unique(grown[:num_grown])


@numba.njit(cache=True, inline="always")
def _precedes(
    count_1: int, pair_1: int, count_2: int, pair_2: int, lefts: NDArray[np.int32], rights: NDArray[np.int32]
) -> bool:
    if count_1 != count_2:
        return count_1 > count_2
    if lefts[pair_1] != lefts[pair_2]:
        return bool(lefts[pair_1] < lefts[pair_2])
    return bool(rights[pair_1] < rights[pair_2])


@numba.njit(cache=True)
def _push_all(
    pairs: NDArray[np.int32],
    heap_count: NDArray[np.int64],
    heap_pair: NDArray[np.int32],
    sizes: NDArray[np.int64],
    count: NDArray[np.int64],
    lefts: NDArray[np.int32],
    rights: NDArray[np.int32],
) -> None:
    for pair in pairs:
        child = sizes[_HEAP_SIZE]
        sizes[_HEAP_SIZE] += 1
        heap_count[child], heap_pair[child] = count[pair], pair
        while child > 0:
            parent = (child - 1) // 2
            if not _precedes(heap_count[child], heap_pair[child], heap_count[parent], heap_pair[parent], lefts, rights):
                break
            heap_count[child], heap_count[parent] = heap_count[parent], heap_count[child]
            heap_pair[child], heap_pair[parent] = heap_pair[parent], heap_pair[child]
            child = parent


@numba.njit(cache=True)
def _pop(
    heap_count: NDArray[np.int64],
    heap_pair: NDArray[np.int32],
    sizes: NDArray[np.int64],
    count: NDArray[np.int64],
    lefts: NDArray[np.int32],
    rights: NDArray[np.int32],
) -> tuple[int, int, int]:
    while sizes[_HEAP_SIZE] > 0:
        pair, pushed = heap_pair[0], heap_count[0]
        current = count[pair]
        if pushed != current and current > 0:
            heap_count[0] = current
        else:
            sizes[_HEAP_SIZE] -= 1
            last = sizes[_HEAP_SIZE]
            heap_count[0], heap_pair[0] = heap_count[last], heap_pair[last]
        _sift_down(heap_count, heap_pair, sizes[_HEAP_SIZE], lefts, rights)
        if pushed == current and current > 0:
            return lefts[pair], rights[pair], current
    return _NONE, _NONE, 0


@numba.njit(cache=True)
def _sift_down(
    heap_count: NDArray[np.int64],
    heap_pair: NDArray[np.int32],
    heap_size: int,
    lefts: NDArray[np.int32],
    rights: NDArray[np.int32],
) -> None:
    parent = 0
    while True:
        best = parent
        for child in (2 * parent + 1, 2 * parent + 2):
            if child < heap_size and _precedes(
                heap_count[child], heap_pair[child], heap_count[best], heap_pair[best], lefts, rights
            ):
                best = child
        if best == parent:
            return
        heap_count[best], heap_count[parent] = heap_count[parent], heap_count[best]
        heap_pair[best], heap_pair[parent] = heap_pair[parent], heap_pair[best]
        parent = best
