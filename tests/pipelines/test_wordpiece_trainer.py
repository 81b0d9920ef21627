"""The vocabulary trainer against a reference that recounts all pairs for each merge."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import train_wordpiece

from pipelines.contract import SPECIAL_TOKENS
from pipelines.recipe import InputError
from pipelines.word_counts import count_words, merge_counts
from pipelines.wordpiece import WordPieceTokenizer, build_tokenizer
from pipelines.wordpiece_trainer import train


def trained(word_counts: dict[str, int], size: int, **settings: int) -> list[str]:
    words = pa.array(list(word_counts), pa.string())
    return train(words, np.array(list(word_counts.values()), np.int64), size, **settings)


def alphabet_of(word_counts: dict[str, int]) -> list[str]:
    heads = sorted({character for word in word_counts for character in word})
    tails = sorted({character for word in word_counts for character in word[1:]})
    return [*SPECIAL_TOKENS, *heads, *("##" + character for character in tails)]


WORDS = st.dictionaries(st.text("abc", min_size=1, max_size=9), st.integers(1, 1 << 40), min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(word_counts=WORDS, more=st.integers(0, 40))
def test_merges_equal_the_reference(word_counts: dict[str, int], more: int) -> None:
    start = alphabet_of(word_counts)
    expected = train_wordpiece(word_counts, start, len(start) + more, min_count=2)
    assert trained(word_counts, len(expected)) == expected


def test_counts_beyond_32_bits() -> None:
    assert trained({"ab": 1 << 40, "ac": 1 << 39}, 11)[-1] == "ab"


def test_order_of_words_does_not_matter() -> None:
    generator = random.Random(1)
    word_counts = {
        "".join(generator.choices("abcdefghij", k=generator.randint(1, 10))): generator.randint(1, 50)
        for _ in range(3000)
    }
    shuffled = list(word_counts.items())
    generator.shuffle(shuffled)
    assert trained(word_counts, 600) == trained(dict(shuffled), 600)


def test_rare_characters_are_left_out() -> None:
    tokens = trained({"aaa": 10, "aab": 9, "aaz": 1}, 9, alphabet_size=2)
    assert tokens[5:] == ["a", "b", "##a", "##b"]
    assert WordPieceTokenizer(tokens, lowercase=True).tokenize(pa.array(["z"])).input_ids.tolist() == [1]


def test_too_large_and_too_small_sizes_say_what_to_do() -> None:
    with pytest.raises(InputError, match=r"vocabulary\.size = 50: .*only \d+ entries.*min_count"):
        trained({"ab": 2}, 50)
    with pytest.raises(InputError, match=r"vocabulary\.size = 6: .*alphabet alone need 8"):
        trained({"ab": 2}, 6)


def test_vocabulary_loads_in_tokenizers_and_splits_a_word() -> None:
    tokens = trained({"lower": 5, "lowest": 5, "newer": 5}, 26)
    assert len(tokens) == len(set(tokens)) == 26
    assert build_tokenizer(tokens, True, None).encode("lower", add_special_tokens=False).tokens[0].startswith("low")


def test_word_counts_are_those_of_the_pre_tokeniser() -> None:
    texts = pa.array(["Don't stop, DON'T!", "na\u00efve cafe\u0301 \u6771\u4eac", "a\x00b \x7f"])
    table = count_words(texts, lowercase=True, strip_accents=None)
    counts = dict(zip(table["word"].to_pylist(), table["count"].to_pylist(), strict=True))
    expected = {"don": 2, "'": 2, "t": 2, "stop": 1, ",": 1, "!": 1, "naive": 1, "cafe": 1, "\u6771": 1, "\u4eac": 1}
    assert counts == expected | {"ab": 1}
    assert table["word"].to_pylist() == sorted(counts)


def test_merging_counts_adds_up() -> None:
    one, two = (count_words(pa.array([text]), True, None) for text in ("a b b", "b c"))
    assert merge_counts([one, two]).to_pydict() == {"word": ["a", "b", "c"], "count": [1, 3, 1]}
    assert merge_counts([]).num_rows == 0
