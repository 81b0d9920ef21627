"""Words of a text, in lower case and without punctuation, and n-grams of their hashes; equal in every process.

`word_hashes` has the compiled loops, which not every job needs to load.
"""

from __future__ import annotations

import re
from itertools import islice

import numpy as np
from numpy.typing import NDArray

IDEOGRAPHS = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3134F))
"""First and last code points of scripts that write no spaces between words: a character counts as one, as in BERT's own
tokenizer."""
ODD = np.uint64(0x9E37_79B9_7F4A_7C15)
_RANGES = "".join(f"{chr(first)}-{chr(last)}" for first, last in IDEOGRAPHS)
WORD = re.compile(rf"[{_RANGES}]|[^\W_{_RANGES}]+")


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
    return [match.group() for match in islice(WORD.finditer(text.lower()), first, first + count)]


def has_words(text: str) -> bool:
    return WORD.search(text) is not None


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, as in `seeding.mix`, over an array."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return values ^ (values >> np.uint64(31))
