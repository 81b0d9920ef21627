"""Hashes of a text's words and of their n-grams, found and hashed in one compiled pass over its UTF-8 bytes.

A word is what `shingles.WORD` matches. Its hash is that of `rensa`, which is rustc-hash 2.1 (`FxHasher`), mixed once
more. To make a Python string of each word would take ten times as long.
"""

from __future__ import annotations

from functools import cache

import numba
import numpy as np
from numpy.typing import NDArray

from pipelines.filtering.shingles import IDEOGRAPHS, ODD
from pipelines.seeding import mix

_LETTER, _IDEOGRAPH = 1, 2
_CODE_POINTS = 0x110000
_WORDS_AT_ONCE = 1 << 16

_SEED_1, _SEED_2 = np.uint64(0x243F_6A88_85A3_08D3), np.uint64(0x1319_8A2E_0370_7344)
_NO_ZERO_COLLAPSE = np.uint64(0xA409_3822_299F_31D0)
_FACTOR = np.uint64(0xF135_7AEA_2E62_A9C5)
_LOW_HALF, _HALF_BITS = np.uint64(0xFFFF_FFFF), np.uint64(32)


def word_hashes(text: str) -> NDArray[np.uint64]:
    """Hashes of a text's words in lower case, in order."""
    # Half a surrogate pair, as JSON may hold it, parts words.
    utf8 = np.frombuffer(text.lower().encode(errors="surrogatepass"), np.uint8)
    parts, place = [], 0
    while place < len(utf8):
        # A part at a time, as it is not known how many words there are.
        hashes = np.empty(min(_WORDS_AT_ONCE, len(utf8) - place) + 1, np.uint64)
        place, count = _hash_words(utf8, place, kinds_of_characters(), hashes)
        parts.append(hashes[:count])
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def shingle_hashes(text: str, words_per_shingle: int) -> NDArray[np.uint64]:
    """Hashes of a text's word n-grams; a shorter text is one n-gram."""
    hashes = word_hashes(text)
    return _joined(hashes, min(words_per_shingle, len(hashes))) if len(hashes) else hashes


@cache
def kinds_of_characters() -> NDArray[np.uint8]:
    """By code point: whether a character is part of a word (`str.isalnum`), a word of its own, or neither."""
    kinds = np.fromiter(map(str.isalnum, map(chr, range(_CODE_POINTS))), np.uint8, _CODE_POINTS)
    for first, last in IDEOGRAPHS:
        kinds[first : last + 1] = _IDEOGRAPH
    return kinds


@numba.njit(cache=True, nogil=True)
def _hash_words(
    utf8: NDArray[np.uint8], start: int, kinds: NDArray[np.uint8], hashes: NDArray[np.uint64]
) -> tuple[int, int]:
    """Hash words from byte `start` on until `hashes` has no room for two more; returns the next byte, and how many."""
    place, word_start, count = start, -1, 0
    while place < len(utf8):
        first = np.int64(utf8[place])
        if first < 0x80:
            code_point, size = first, 1
        elif first < 0xE0:
            code_point, size = (first & 0x1F) << 6 | (utf8[place + 1] & 0x3F), 2
        elif first < 0xF0:
            code_point, size = (first & 0x0F) << 12 | (utf8[place + 1] & 0x3F) << 6 | (utf8[place + 2] & 0x3F), 3
        else:
            code_point = (first & 0x07) << 18 | (utf8[place + 1] & 0x3F) << 12
            code_point, size = code_point | (utf8[place + 2] & 0x3F) << 6 | (utf8[place + 3] & 0x3F), 4
        kind = kinds[code_point]
        if kind == _LETTER:
            if word_start < 0:
                word_start = place
        else:
            if word_start >= 0:
                hashes[count] = mix(_hash(utf8, word_start, place))
                word_start, count = -1, count + 1
            if kind == _IDEOGRAPH:
                hashes[count] = mix(_hash(utf8, place, place + size))
                count += 1
            if count + 2 > len(hashes):
                return place + size, count
        place += size
    if word_start >= 0:
        hashes[count] = mix(_hash(utf8, word_start, place))
        count += 1
    return place, count


@numba.njit(cache=True, nogil=True)
def _joined(hashes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    found = np.zeros(len(hashes) - size + 1, np.uint64)
    for first in range(len(found)):
        joined = np.uint64(0)
        for place in range(size):
            joined = mix(joined * ODD + hashes[first + place])
        found[first] = joined
    return found


@numba.njit(cache=True, inline="always")
def _hash(utf8: NDArray[np.uint8], start: int, end: int) -> np.uint64:
    """`calculate_hash_fast` of rensa's src/utils.rs."""
    length = end - start
    one, two = _SEED_1, _SEED_2
    if length > 16:
        place = start
        while place < end - 16:
            mixed = _folded_product(one ^ _word(utf8, place, 8), _NO_ZERO_COLLAPSE ^ _word(utf8, place + 8, 8))
            one, two = two, mixed
            place += 16
        one ^= _word(utf8, end - 16, 8)
        two ^= _word(utf8, end - 8, 8)
    elif length >= 8:
        one ^= _word(utf8, start, 8)
        two ^= _word(utf8, end - 8, 8)
    elif length >= 4:
        one ^= _word(utf8, start, 4)
        two ^= _word(utf8, end - 4, 4)
    else:
        one ^= np.uint64(utf8[start])
        two ^= np.uint64(utf8[end - 1]) << np.uint64(8) | np.uint64(utf8[start + length // 2])
    product = (_folded_product(one, two) ^ np.uint64(length)) * _FACTOR
    return product << np.uint64(26) | product >> np.uint64(38)


@numba.njit(cache=True, inline="always")
def _word(utf8: NDArray[np.uint8], start: int, size: int) -> np.uint64:
    """Some bytes as a number, the first one lowest."""
    value = np.uint64(0)
    for place in range(size):
        value |= np.uint64(utf8[start + place]) << np.uint64(8 * place)
    return value


@numba.njit(cache=True, inline="always")
def _folded_product(one: np.uint64, two: np.uint64) -> np.uint64:
    """The lower half of the 128-bit product, exclusive or with the upper one."""
    one_low, one_high = one & _LOW_HALF, one >> _HALF_BITS
    two_low, two_high = two & _LOW_HALF, two >> _HALF_BITS
    low, cross = one_low * two_low, one_high * two_low
    middle = (low >> _HALF_BITS) + (cross & _LOW_HALF) + one_low * two_high
    high = one_high * two_high + (cross >> _HALF_BITS) + (middle >> _HALF_BITS)
    return (middle << _HALF_BITS | low & _LOW_HALF) ^ high
