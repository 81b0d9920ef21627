"""A hash table of the distinct chunks of text, filled by a compiled loop over Arrow's own buffers.

A chunk is a longest run of bytes that are neither white space (space, tab, CR, LF) nor ASCII punctuation; a punctuation
mark is a chunk of its own. Everything else, control characters and all of Unicode, stays inside its chunk.
"""

from __future__ import annotations

import string
from typing import Any

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FNV_OFFSET, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)

_SPACE, _PUNCTUATION, _LETTER = 0, 1, 2
_FIRST_SLOTS = 1 << 16
_MAX_CHUNKS = 1 << 22
_MAX_BYTES = 1 << 28


class ChunkTable:
    """Hash table of the distinct chunks of all texts seen, numbered in order of their first appearance.

    `key_bytes` holds the chunks' bytes one after the other (ASCII letters folded when lower-casing), `key_offsets`
    where each begins.
    """

    def __init__(self, lowercase: bool):
        self.byte_class = np.full(256, _LETTER, np.uint8)
        self.byte_class[[ord(mark) for mark in string.punctuation]] = _PUNCTUATION
        self.byte_class[[ord(space) for space in " \t\r\n"]] = _SPACE
        self.folded = np.arange(256, dtype=np.uint8)
        if lowercase:
            self.folded[ord("A") : ord("Z") + 1] += ord("a") - ord("A")
        self.slots = np.full(_FIRST_SLOTS, -1, np.int32)
        self.hashes = np.zeros(_FIRST_SLOTS, np.uint64)
        self.key_offsets = np.zeros(_FIRST_SLOTS + 1, np.int64)
        self.key_bytes = np.zeros(_FIRST_SLOTS * 8, np.uint8)
        self.size = 0

    def chunk_numbers(self, texts: pa.Array) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Split texts into chunks: the number of each chunk, and where each text's begin (int64 [texts + 1])."""
        data, text_offsets = _string_buffers(texts)
        num_texts = len(text_offsets) - 1
        chunks = np.empty(int(text_offsets[-1] - text_offsets[0]), np.int32)
        chunk_offsets = np.zeros(num_texts + 1, np.int64)
        done = 0
        while done < num_texts:
            done, self.size = _number_chunks(
                data,
                text_offsets,
                done,
                self.byte_class,
                self.folded,
                self.slots,
                self.hashes,
                self.key_offsets,
                self.key_bytes,
                self.size,
                chunks,
                chunk_offsets,
            )
            if done < num_texts:
                self._grow(int(text_offsets[done + 1] - text_offsets[done]))
        return chunks[: chunk_offsets[-1]], chunk_offsets

    def key(self, number: int) -> str:
        """The text of one chunk."""
        return self.key_bytes[self.key_offsets[number] : self.key_offsets[number + 1]].tobytes().decode()

    @property
    def is_large(self) -> bool:
        """Has the table outgrown what a worker should hold? Its owner then starts a new one; no id changes."""
        return self.size > _MAX_CHUNKS or int(self.key_offsets[self.size]) > _MAX_BYTES

    def _grow(self, text_bytes: int) -> None:
        """Make room for all chunks that a text of that many bytes can hold."""
        num_slots = len(self.slots)
        while num_slots // 2 < self.size + text_bytes:
            num_slots *= 2
        if num_slots > len(self.slots):
            self.slots, hashes = np.full(num_slots, -1, np.int32), self.hashes
            self.hashes = np.zeros(num_slots, np.uint64)
            self.hashes[: len(hashes)] = hashes
            self.key_offsets = np.resize(self.key_offsets, num_slots + 1)
            _insert_all(self.slots, self.hashes, self.size)
        needed_bytes = int(self.key_offsets[self.size]) + text_bytes
        if needed_bytes > len(self.key_bytes):
            self.key_bytes = np.resize(self.key_bytes, max(needed_bytes, 2 * len(self.key_bytes)))


def _string_buffers(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """The bytes and offsets behind a string array, without a copy."""
    assert texts.type == pa.string(), texts.type
    assert texts.null_count == 0
    _, offset_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.zeros(0, np.uint8)
    return data, offsets


@numba.njit(cache=True, nogil=True)
def _number_chunks(
    data: NDArray[np.uint8],
    text_offsets: NDArray[np.int32],
    first_text: int,
    byte_class: NDArray[np.uint8],
    folded: NDArray[np.uint8],
    slots: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    key_offsets: NDArray[np.int64],
    key_bytes: NDArray[np.uint8],
    size: int,
    chunks: NDArray[np.int32],
    chunk_offsets: NDArray[np.int64],
) -> tuple[int, int]:
    """Number the chunks of the texts from `first_text` on; stop before a text for which the table may lack room.

    Returns the number of texts done and the table's new size.
    """
    last_slot = np.uint64(len(slots) - 1)
    for text in range(first_text, len(text_offsets) - 1):
        position, stop = np.int64(text_offsets[text]), np.int64(text_offsets[text + 1])
        room = min(len(slots) // 2 - size, len(key_bytes) - key_offsets[size])
        if stop - position > room:
            return text, size
        written = chunk_offsets[text]
        while position < stop:
            kind = byte_class[data[position]]
            if kind == _SPACE:
                position += 1
                continue
            start = position
            key_hash = FNV_OFFSET
            while position < stop:
                byte = data[position]
                if byte_class[byte] != kind:
                    break
                key_hash = (key_hash ^ np.uint64(folded[byte])) * FNV_PRIME
                position += 1
                if kind == _PUNCTUATION:
                    break
            key_hash ^= key_hash >> np.uint64(29)
            slot = key_hash & last_slot
            length = position - start
            while True:
                number = slots[slot]
                if number < 0:
                    number = size
                    slots[slot] = number
                    hashes[number] = key_hash
                    base = key_offsets[number]
                    for index in range(length):
                        key_bytes[base + index] = folded[data[start + index]]
                    key_offsets[number + 1] = base + length
                    size += 1
                    break
                if hashes[number] == key_hash:
                    base = key_offsets[number]
                    if key_offsets[number + 1] - base == length:
                        index = 0
                        while index < length and key_bytes[base + index] == folded[data[start + index]]:
                            index += 1
                        if index == length:
                            break
                slot = (slot + np.uint64(1)) & last_slot
            chunks[written] = number
            written += 1
        chunk_offsets[text + 1] = written
    return len(text_offsets) - 1, size


@numba.njit(cache=True, nogil=True)
def _insert_all(slots: NDArray[np.int32], hashes: NDArray[np.uint64], size: int) -> None:
    """Put the first `size` chunks into an empty slot array."""
    last_slot = np.uint64(len(slots) - 1)
    for number in range(size):
        slot = hashes[number] & last_slot
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & last_slot
        slots[slot] = number
