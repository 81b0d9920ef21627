"""The words that extend a vocabulary, against a slow reference."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer

from pipelines.contract.errors import InputError
from pipelines.contract.schemas import SPECIAL_TOKENS
from pipelines.vocabularies.extension import Extension, extend, restored
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.tokenizer_settings import AddedToken, TokenizerSettings
from pipelines.wordpiece.word_counts import count_words

LETTERS = "abcde"
TOKENS = [
    "[PAD]",
    "[unused0]",
    "[unused1]",
    *SPECIAL_TOKENS[1:],
    "[unused2]",
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    "ab",
    "##cd",
]
SETTINGS = TokenizerSettings(lowercase=True)
NUM_UNUSED = 3


def extended(
    words: Counter[str], number: int, tokens: list[str] = TOKENS, settings: TokenizerSettings = SETTINGS
) -> Extension:
    table = sorted(words.items())
    distinct = pa.array([word for word, _ in table], pa.string())
    return extend(tokens, settings, distinct, np.array([count for _, count in table], np.int64), number)


def by_use(words: Counter[str]) -> list[str]:
    """The words worth adding, the most useful first: plain loops over the library's tokenizer."""
    tokenizer = BertWordPieceTokenizer({token: index for index, token in enumerate(TOKENS)}, lowercase=True)
    uses = []
    for word, count in words.items():
        pieces = tokenizer.encode(word, add_special_tokens=False).tokens
        saved = len(word) if pieces == ["[UNK]"] else len(pieces) - 1
        if saved and len(word) <= 100:
            uses.append((-saved * count, word))
    return [word for _, word in sorted(uses)]


WORD = st.text(st.sampled_from([*LETTERS, "z", "語"]), min_size=1, max_size=6) | st.just("z" * 101)


@settings(max_examples=80, deadline=None)
@given(words=st.dictionaries(WORD, st.integers(1, 4), min_size=1, max_size=12), data=st.data())
def test_the_most_useful_words_by_a_slow_reference(words: dict[str, int], data: st.DataObject) -> None:
    useful = by_use(Counter(words))
    number = data.draw(st.integers(0, len(useful)))
    result = extended(Counter(words), number)
    expected = list(TOKENS)
    for place, word in zip((1, 2, 7), useful[:number], strict=False):
        expected[place] = word
    expected += useful[NUM_UNUSED:number]
    assert result.tokens == expected
    assert result.appended == max(0, number - NUM_UNUSED)
    assert list(result.replaced) == ["[unused0]", "[unused1]", "[unused2]"][:number]
    assert restored(result.tokens, result.replaced, result.appended) == TOKENS
    with pytest.raises(InputError, match=rf"extend = {len(useful) + 1}: only {len(useful)} words .* lower it"):
        extended(Counter(words), len(useful) + 1)


def test_each_word_is_one_piece_afterwards_and_the_order_of_the_texts_does_not_matter() -> None:
    texts = ["abcd abcd cab zebra zebra zebra bad", "語 bad dab zebra cab", "dabbed acbd"]
    words = count_words(pa.array(texts), True, None)
    shuffled = [text.split() for text in texts]
    for one in shuffled:
        random.Random(1).shuffle(one)
    again = count_words(pa.array([" ".join(one) for one in reversed(shuffled)]), True, None)
    assert words.equals(again)
    counted = Counter(dict(zip(words["word"].to_pylist(), words["count"].to_pylist(), strict=True)))
    result = extended(counted, 5)
    added = [*result.replaced.values(), *result.tokens[len(TOKENS) :]]
    assert added[:2] == ["zebra", "dabbed"]
    ids = WordPieceTokenizer(result.tokens, *SETTINGS).tokenize(pa.array(added)).input_ids.tolist()
    assert ids == [1, 2, 7, len(TOKENS), len(TOKENS) + 1]


def test_words_that_hold_an_added_token_and_entries_that_are_one_are_left_alone() -> None:
    flags = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    added = (AddedToken("[unused1]", 2, True, **flags), AddedToken("Zeb", len(TOKENS), False, **flags))
    result = extended(
        Counter({"zebra": 9, "bad": 2, "dad": 1}), 2, [*TOKENS, "Zeb"], SETTINGS._replace(added_tokens=added)
    )
    assert result.replaced == {"[unused0]": "bad", "[unused2]": "dad"}
