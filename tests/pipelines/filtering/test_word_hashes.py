"""Hashes of words against an expression that finds them and `rensa`, which hashes them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rensa import RMinHash

from pipelines.filtering import word_hashes as compiled
from pipelines.filtering.shingles import ODD, WORD, mix
from pipelines.filtering.word_hashes import shingle_hashes, word_hashes

PIECES = st.one_of(
    st.text(),
    st.text(st.characters(codec="utf-8", categories=("L", "N", "M"))),
    st.sampled_from(
        [" ", "_", "-", "漢字", "ひら", "한국어", "İstanbul", "ß", "e\u0301", "𠀀", "\U0001d518", "\u200b", "\ud83d"]
    ),
)
TEXTS = st.lists(PIECES).map("".join)


def expected(text: str) -> NDArray[np.uint64]:
    words = WORD.findall(text.lower())
    return mix(np.array(RMinHash.hash_token_sets([words])[0], np.uint64)) if words else np.zeros(0, np.uint64)


@given(TEXTS)
def test_words_have_the_hashes_of_the_slow_way(text: str) -> None:
    assert word_hashes(text).tolist() == expected(text).tolist()


def test_a_word_of_any_length_is_hashed_as_rensa_does() -> None:
    letters = "".join(chr(ord("a") + number * 7 % 26) for number in range(200))
    text = " ".join(letters[start : start + length] for length in range(1, 100) for start in (0, 1, 50))
    assert word_hashes(text).tolist() == expected(text).tolist()


def test_every_character_is_of_the_kind_that_the_expression_says() -> None:
    # A letter on both sides shows whether a character parts words, joins them, or is one.
    text = "".join(f"a{chr(code)}b " for code in range(sys.maxunicode + 1))
    assert word_hashes(text).tolist() == expected(text).tolist()


@given(TEXTS, st.integers(1, 5))
def test_a_long_text_is_hashed_in_parts(text: str, words_at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_WORDS_AT_ONCE", words_at_once)
        assert word_hashes(text).tolist() == expected(text).tolist()


@given(TEXTS, st.integers(1, 6))
def test_n_grams_are_joined_word_by_word(text: str, size: int) -> None:
    words = expected(text).tolist()
    size = min(size, max(1, len(words)))
    joined = []
    for first in range(len(words) - size + 1):
        value = np.zeros(1, np.uint64)
        for word in words[first : first + size]:
            value = mix(value * ODD + np.uint64(word))
        joined.append(int(value[0]))
    assert shingle_hashes(text, size).tolist() == joined
