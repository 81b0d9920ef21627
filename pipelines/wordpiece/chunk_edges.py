"""Where the chunks of many texts begin and end, found 64 bytes at a time and without a branch for each byte.

A chunk is a longest run of bytes that are neither white space (space, tab, CR, LF) nor ASCII punctuation; a punctuation
mark is a chunk of its own. Everything else, control characters and all of Unicode, stays inside its chunk.

The method is that of Langdale and Lemire, "Parsing gigabytes of JSON per second" (2019), section 3.1, on plain uint64
words. Eight bytes are classified at once, by additions whose carry ends in the highest bit of each byte; the results of
64 bytes become one mask; shifted masks give the edges; and the set bits are written out as positions. Cost on English
text: 0.1 ns a byte to classify (LLVM vectorizes that loop), 2 ns a chunk to write out.
"""

from __future__ import annotations

import sys

import numba
import numpy as np
from numpy.typing import NDArray

assert sys.byteorder == "little", "the first byte of a word is taken to be its lowest"

FOLD_NOTHING, FOLD_LETTERS = np.uint64(0), np.uint64(0x2020202020202020)
"""What is added to the words' upper-case ASCII letters: nothing, or the bit that makes them lower-case."""

_ONE, _BLOCK_BITS, _LAST_BIT = np.uint64(1), np.uint64(6), np.uint64(63)
_EVERY_BYTE = np.uint64(0x0101010101010101)
_HIGH_BITS, _LOW_BITS = np.uint64(0x80) * _EVERY_BYTE, np.uint64(0x7F) * _EVERY_BYTE
_GATHER = np.uint64(0x0102040810204080)
_SPACE = np.uint8(ord(" "))


@numba.njit(inline="always")
def _between(low_bits: np.uint64, first: int, last: int) -> np.uint64:
    """The highest bit of each byte whose other seven bits are in first .. last; the bits below it are noise."""
    at_least_first = low_bits + np.uint64(0x80 - first) * _EVERY_BYTE
    more_than_last = low_bits + np.uint64(0x7F - last) * _EVERY_BYTE
    return at_least_first & ~more_than_last


@numba.njit(inline="always")
def _count_bits(mask: np.uint64) -> np.int64:
    """Number of set bits, in the form that LLVM turns into the machine's instruction for it."""
    mask -= (mask >> _ONE) & np.uint64(0x5555555555555555)
    mask = (mask & np.uint64(0x3333333333333333)) + ((mask >> np.uint64(2)) & np.uint64(0x3333333333333333))
    mask = (mask + (mask >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((mask * _EVERY_BYTE) >> np.uint64(56))


@numba.njit(inline="always")
def _lowest_bit(mask: np.uint64) -> np.int64:
    """The place of the lowest set bit; LLVM knows this form too. 64 if there is none."""
    return _count_bits(~mask & (mask - _ONE))


@numba.njit(inline="always")
def _write_positions(mask: np.uint64, base: int, positions: NDArray[np.int32], first: np.int64) -> None:
    """Write where the bits of a mask are set, eight at a time, so that the loop's end is predictable."""
    while mask != np.uint64(0):
        for index in range(8):
            positions[first + index] = base + _lowest_bit(mask)
            mask &= mask - _ONE
        first += np.int64(8)


@numba.njit(cache=True, nogil=True)
def find_edges(
    data: NDArray[np.uint8], text_offsets: NDArray[np.int32], fold: np.uint64
) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Split the texts into chunks.

    Args:
        data: bytes of all texts; text t is `data[text_offsets[t] : text_offsets[t + 1]]`.
        text_offsets: [texts + 1]
        fold: FOLD_LETTERS to lower-case ASCII letters, or FOLD_NOTHING.

    Returns:
        The folded bytes from the first text on, as words, with at least 64 spaces after them; where each chunk begins
        and ends in those bytes, [chunks]; and where each text's chunks begin, [texts + 1].
    """
    first, num_bytes = np.int64(text_offsets[0]), np.int64(text_offsets[-1]) - np.int64(text_offsets[0])
    # One block more than the text needs, so that looking ahead of the last byte stays inside.
    num_blocks = num_bytes // 64 + 2
    words = np.empty(num_blocks * 8, np.uint64)
    folded = words.view(np.uint8)
    folded[:num_bytes] = data[first : first + num_bytes]
    folded[num_bytes:] = _SPACE

    # Classify eight bytes at a time, and gather one bit for each.
    inside_bytes, mark_bytes = np.empty(len(words), np.uint8), np.empty(len(words), np.uint8)
    for index in range(len(words)):
        word = words[index]
        low_bits = word & _LOW_BITS
        ascii_bytes = ~word & _HIGH_BITS
        upper = _between(low_bits, 0x41, 0x5A) & ascii_bytes
        mark = _between(low_bits, 0x21, 0x2F) | _between(low_bits, 0x3A, 0x40)
        mark = (mark | _between(low_bits, 0x5B, 0x60) | _between(low_bits, 0x7B, 0x7E)) & ascii_bytes
        space = _between(low_bits, 0x09, 0x0A) | _between(low_bits, 0x0D, 0x0D) | _between(low_bits, 0x20, 0x20)
        inside = ~(mark | (space & ascii_bytes)) & _HIGH_BITS
        words[index] = word | ((upper >> np.uint64(2)) & fold)
        inside_bytes[index] = ((inside >> np.uint64(7)) * _GATHER) >> np.uint64(56)
        mark_bytes[index] = ((mark >> np.uint64(7)) * _GATHER) >> np.uint64(56)

    # Mark the first byte of each text.
    text_starts = np.zeros(num_blocks, np.uint64)
    for text in range(len(text_offsets)):
        offset = np.uint64(np.int64(text_offsets[text]) - first)
        text_starts[offset >> _BLOCK_BITS] |= _ONE << (offset & _LAST_BIT)

    # Bit i of block b is about byte 64 * b + i. A byte inside a word begins a chunk where the byte before it is not
    # inside a word or where a text begins, and ends one where the same holds for the byte after it.
    all_inside, all_marks = inside_bytes.view(np.uint64), mark_bytes.view(np.uint64)
    start_masks, end_masks = np.empty(num_blocks, np.uint64), np.empty(num_blocks, np.uint64)
    num_chunks_before = np.zeros(num_blocks + 1, np.int64)
    inside_before = np.uint64(0)
    for block in range(num_blocks - 1):
        inside, mark = all_inside[block], all_marks[block]
        inside_after = (inside >> _ONE) | (all_inside[block + 1] << _LAST_BIT)
        text_after = (text_starts[block] >> _ONE) | (text_starts[block + 1] << _LAST_BIT)
        start_masks[block] = mark | (inside & (~((inside << _ONE) | inside_before) | text_starts[block]))
        end_masks[block] = mark | (inside & (~inside_after | text_after))
        inside_before = inside >> _LAST_BIT
        num_chunks_before[block + 1] = num_chunks_before[block] + _count_bits(start_masks[block])

    # Write out the edges as positions.
    num_chunks = num_chunks_before[num_blocks - 1]
    starts, ends = np.empty(num_chunks + 64, np.int32), np.empty(num_chunks + 64, np.int32)
    num_ends = np.int64(0)
    for block in range(num_blocks - 1):
        _write_positions(start_masks[block], 64 * block, starts, num_chunks_before[block])
        _write_positions(end_masks[block], 64 * block + 1, ends, num_ends)
        num_ends += _count_bits(end_masks[block])

    # Count the chunks before each text.
    chunk_offsets = np.empty(len(text_offsets), np.int64)
    for text in range(len(text_offsets)):
        offset = np.uint64(np.int64(text_offsets[text]) - first)
        earlier = (_ONE << (offset & _LAST_BIT)) - _ONE
        block_of_text = offset >> _BLOCK_BITS
        chunk_offsets[text] = num_chunks_before[block_of_text] + _count_bits(start_masks[block_of_text] & earlier)
    return words, starts[:num_chunks], ends[:num_chunks], chunk_offsets
