"""Word n-grams of a text as 64-bit hashes, in lower case and without punctuation; equal in every process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

_LONG_TEXT_CHARACTERS = 1 << 20
_WORDS_AT_ONCE = 100_000
# Scripts that write no spaces between words: a character counts as one, as in BERT's own tokenizer.
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+")
ODD = np.uint64(0x9E37_79B9_7F4A_7C15)


def shingle_hashes(text: str, words_per_shingle: int) -> NDArray[np.uint64]:
    """Hashes of a text's word n-grams; a shorter text is one n-gram."""
    hashes = word_hashes(text)
    if not len(hashes):
        return hashes
    size = min(words_per_shingle, len(hashes))
    found = np.zeros(len(hashes) - size + 1, np.uint64)
    for place in range(size):
        found = mix(found * ODD + hashes[place : place + len(found)])
    return found


def word_hashes(text: str) -> NDArray[np.uint64]:
    """Hashes of a text's words, in order."""
    parts = [np.array(RMinHash.hash_token_sets([words])[0], np.uint64) for words in _words_of(text.lower())]
    return mix(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)


def gram_hashes(words: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Hashes of the n-grams of `size` consecutive words; at least so many are given.

    They are joined from n-grams of 1, 2, 4, ... words, which takes fewer steps than word by word.
    """
    num_grams = len(words) - size + 1
    found = np.zeros(num_grams, np.uint64)
    joined, length, place = words, 1, 0
    while place < size:
        if size & length:
            found = mix(found * ODD + joined[place : place + num_grams])
            place += length
        joined = mix(joined[:-length] * ODD + joined[length:])
        length *= 2
    return found


def words_of(text: str, first: int, count: int) -> list[str]:
    """Some of a text's words as they are compared, beginning with word number `first`."""
    return [match.group() for match in islice(_WORD.finditer(text.lower()), first, first + count)]


def has_words(text: str) -> bool:
    return _WORD.search(text) is not None


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, as in `seeding.mix`, over an array."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return values ^ (values >> np.uint64(31))


def _words_of(text: str) -> Iterator[list[str]]:
    """Words in groups, because all words of a long text would take ten times its size."""
    if len(text) <= _LONG_TEXT_CHARACTERS:
        groups = iter([_WORD.findall(text)])
    else:
        words = (match.group() for match in _WORD.finditer(text))
        groups = iter(lambda: [*islice(words, _WORDS_AT_ONCE)], [])
    return filter(None, groups)
