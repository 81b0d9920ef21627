"""A hash table of the distinct chunks of text (see `chunk_edges`), filled by a compiled loop over Arrow's own buffers.

A chunk of up to 15 bytes is its own key: two words, of which the second ends in the length. So most chunks of most
languages are found with two comparisons in one cache line, and no byte is read twice. A longer chunk has a 64-bit hash
and its length as key, and its bytes are compared too. Cost on English text: 5 ns a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.wordpiece.chunk_edges import FOLD_LETTERS, FOLD_NOTHING, find_edges

_FIRST_SLOTS = 1 << 14
_MAX_CHUNKS, _MAX_BYTES = 3 << 19, 1 << 27
"""With this many chunks a tokeniser holds about 250 MB; a crawl never stops bringing new ones."""

_GROUP_BYTES = 1 << 18
"""Size of text that is split before its chunks are looked up, so that the intermediate results stay in the cache."""

_LONGEST_SHORT = 15
_IS_LONG = np.uint64(1 << 63)
_LENGTH_SHIFT = np.uint64(56)
_FIRST_MASKS = np.array([(1 << 8 * min(length, 8)) - 1 for length in range(_LONGEST_SHORT + 1)], np.uint64)
_SECOND_MASKS = np.array([(1 << 8 * max(length - 8, 0)) - 1 for length in range(_LONGEST_SHORT + 1)], np.uint64)
_MULTIPLIER, _SECOND_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


class ChunkTable:
    """Hash table of the distinct chunks of all texts seen, numbered in order of their first appearance.

    `key_bytes` holds the chunks' bytes one after the other (ASCII letters folded when lower-casing), `key_offsets`
    where each begins.
    """

    def __init__(self, lowercase: bool):
        self._fold = FOLD_LETTERS if lowercase else FOLD_NOTHING
        self._slots = np.zeros((1, 3), np.uint64)
        self.key_offsets = np.zeros(1, np.int64)
        self.key_bytes = np.zeros(_FIRST_SLOTS, np.uint8)
        self.size = 0
        self._rebuild(_FIRST_SLOTS)

    def chunk_numbers(self, texts: pa.Array) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Split texts into chunks: the number of each chunk, and where each text's begin (int64 [texts + 1])."""
        data, text_offsets = _string_buffers(texts)
        chunks = np.empty(int(text_offsets[-1] - text_offsets[0]), np.uint32)
        chunk_offsets = np.zeros(len(text_offsets), np.int64)
        written = 0
        for first, stop in _groups(text_offsets):
            words, starts, ends, offsets = find_edges(data, text_offsets[first : stop + 1], self._fold)
            chunk_offsets[first : stop + 1] = written + offsets
            self._look_up(words, starts, ends, chunks[written : written + len(starts)])
            written += len(starts)
        return chunks[:written], chunk_offsets

    def key(self, number: int) -> str:
        """The text of one chunk."""
        return self.key_bytes[self.key_offsets[number] : self.key_offsets[number + 1]].tobytes().decode()

    def trim(self) -> None:
        """If the table is larger than a worker should hold, forget the newer half of the chunks.

        The older half is more useful: a chunk seen early is likely to be frequent.
        """
        if self.size > _MAX_CHUNKS or int(self.key_offsets[self.size]) > _MAX_BYTES:
            self.size = int(np.searchsorted(self.key_offsets[: self.size + 1], _MAX_BYTES // 2, "right")) - 1
            self.size = min(self.size, _MAX_CHUNKS // 2)
            self._rebuild(len(self._slots))

    def _look_up(
        self, words: NDArray[np.uint64], starts: NDArray[np.int32], ends: NDArray[np.int32], chunks: NDArray[np.uint32]
    ) -> None:
        """Write the numbers of chunks into `chunks`; new ones are added."""
        word_at = _words_of_every_byte(words)
        while len(starts) > 0:
            done, self.size = _number_chunks(
                word_at,
                starts,
                ends,
                self._slots,
                self.key_offsets,
                self.key_bytes,
                _words_of_every_byte(self.key_bytes.view(np.uint64)),
                self.size,
                chunks,
            )
            starts, ends, chunks = starts[done:], ends[done:], chunks[done:]
            if len(starts) == 0:
                return
            if self.size == len(self._slots) // 2:
                self._rebuild(2 * len(self._slots))
            else:
                longest = int((ends - starts).max())
                self.key_bytes = np.resize(self.key_bytes, 2 * len(self.key_bytes) + 8 * longest)

    def _rebuild(self, num_slots: int) -> None:
        """Enter the first `size` chunks into new slots, of which at most half are ever filled."""
        slots = np.zeros((num_slots, 3), np.uint64)
        _copy_slots(self._slots, self.size, slots)
        self._slots = slots
        self.key_offsets = np.resize(self.key_offsets, num_slots // 2 + 1)


def _groups(text_offsets: NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    """Ranges of neighbouring texts with at most `_GROUP_BYTES` bytes, or with one longer text."""
    first = 0
    while first < len(text_offsets) - 1:
        # In the offsets' own type, or NumPy would convert all of them for each group.
        limit = np.int32(min(int(text_offsets[first]) + _GROUP_BYTES, np.iinfo(np.int32).max))
        stop = max(first + 1, int(np.searchsorted(text_offsets, limit, "right")) - 1)
        yield first, stop
        first = stop


def _words_of_every_byte(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The eight bytes from each byte on, as an overlapping and unaligned view; the last seven bytes have none."""
    return np.ndarray((8 * len(words) - 7,), np.uint64, words, strides=(1,))


def _string_buffers(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """The bytes and offsets behind a string array, without a copy."""
    assert texts.type == pa.string(), texts.type
    assert texts.null_count == 0
    _, offset_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(data_buffer if data_buffer is not None else b"", np.uint8)
    return data, offsets


@numba.njit(inline="always")
def _first_slot(first: np.uint64, second: np.uint64, shift: np.uint64) -> np.uint64:
    """The first slot to probe for a key: the product's highest bits, which depend on every bit of the two words."""
    return ((first ^ (second * _SECOND_MULTIPLIER)) * _MULTIPLIER) >> shift


@numba.njit(inline="always")
def _shift_to(num_slots: int) -> np.uint64:
    """The shift that maps a 64-bit hash to `num_slots` slots, a power of two."""
    shift = np.uint64(64)
    while num_slots > 1:
        num_slots >>= 1
        shift -= np.uint64(1)
    return shift


@numba.njit(cache=True, nogil=True)
def _hash_of_long(word_at: NDArray[np.uint64], start: np.uint64, length: np.uint64) -> np.uint64:
    """A 64-bit hash of all bytes of a chunk."""
    key_hash = np.uint64(0)
    done = np.uint64(0)
    while done < length:
        word = word_at[start + done]
        if length - done < np.uint64(8):
            word &= _FIRST_MASKS[length - done]
        key_hash = (key_hash ^ word) * _MULTIPLIER
        key_hash ^= key_hash >> np.uint64(32)
        done += np.uint64(8)
    return key_hash


@numba.njit(cache=True, nogil=True)
def _is_key(
    word_at: NDArray[np.uint64], start: np.uint64, length: np.uint64, key_word_at: NDArray[np.uint64], base: np.uint64
) -> bool:
    """Whether the bytes of a long chunk are those of a key; the last eight are compared separately."""
    eight = np.uint64(8)
    difference = word_at[start + length - eight] ^ key_word_at[base + length - eight]
    done = np.uint64(0)
    while done + eight < length:
        difference |= word_at[start + done] ^ key_word_at[base + done]
        done += eight
    return bool(difference == np.uint64(0))


@numba.njit(cache=True, nogil=True)
def _number_chunks(
    word_at: NDArray[np.uint64],
    starts: NDArray[np.int32],
    ends: NDArray[np.int32],
    slots: NDArray[np.uint64],
    key_offsets: NDArray[np.int64],
    key_bytes: NDArray[np.uint8],
    key_word_at: NDArray[np.uint64],
    size: int,
    chunks: NDArray[np.uint32],
) -> tuple[int, int]:
    """Write the chunks' numbers into `chunks`; stop before a new chunk for which the table has no room.

    `word_at` holds the eight bytes from each byte of the texts on, `key_word_at` those of `key_bytes`.

    Returns the number of chunks done and the table's new size.
    """
    last_slot, shift = np.uint64(len(slots) - 1), _shift_to(len(slots))
    max_size = len(slots) // 2
    for chunk in range(len(starts)):
        # Make the key: the bytes of a short chunk, the hash of a long one.
        start = np.uint64(starts[chunk])
        length = np.uint64(ends[chunk]) - start
        if length <= np.uint64(_LONGEST_SHORT):
            first = word_at[start] & _FIRST_MASKS[length]
            second = length << _LENGTH_SHIFT
            if length > np.uint64(8):
                second |= word_at[start + np.uint64(8)] & _SECOND_MASKS[length]
        else:
            first, second = _hash_of_long(word_at, start, length), _IS_LONG | length
        # Probe until the key or an empty slot is found; a new key takes the empty slot.
        slot = _first_slot(first, second, shift)
        while True:
            first_here, second_here = slots[slot, 0], slots[slot, 1]
            if ((first_here ^ first) | (second_here ^ second)) == np.uint64(0) and (
                second < _IS_LONG
                or _is_key(word_at, start, length, key_word_at, np.uint64(key_offsets[slots[slot, 2]]))
            ):
                chunks[chunk] = slots[slot, 2]
                break
            if second_here == np.uint64(0):
                if size == max_size or key_offsets[size] + np.int64(length) > len(key_bytes):
                    return chunk, size
                slots[slot, 0], slots[slot, 1], slots[slot, 2] = first, second, size
                base = key_offsets[size]
                key_offsets[size + 1] = base + np.int64(length)
                for index in range(np.int64(length)):
                    key_bytes[base + index] = np.uint8(word_at[start + np.uint64(index)])
                chunks[chunk] = size
                size += 1
                break
            slot = (slot + np.uint64(1)) & last_slot
    return len(starts), size


@numba.njit(cache=True, nogil=True)
def _copy_slots(old_slots: NDArray[np.uint64], size: int, slots: NDArray[np.uint64]) -> None:
    """Enter those chunks of the old slots whose number is below `size` into new, empty slots."""
    last_slot, shift = np.uint64(len(slots) - 1), _shift_to(len(slots))
    for old in range(len(old_slots)):
        first, second, number = old_slots[old, 0], old_slots[old, 1], old_slots[old, 2]
        if second == np.uint64(0) or number >= np.uint64(size):
            continue
        slot = _first_slot(first, second, shift)
        while slots[slot, 1] != np.uint64(0):
            slot = (slot + np.uint64(1)) & last_slot
        slots[slot, 0], slots[slot, 1], slots[slot, 2] = first, second, number
