"""Spans of words: a sequential reference, SpanBERT's lengths, and one fate for each span."""

from __future__ import annotations

from collections import Counter
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.support.preprocessing.references import derive_key

from training.data.dynamic_masking import DynamicMasking, masking_of, row_keys
from training.data.ordering import keyed_seed
from training.data.spans import LENGTH_SHARES, MOST_WORDS, choose_spans
from training.data.whole_words import Words
from training.settings.pretraining import MaskSharesConfig

CLS_ID, SEP_ID, MASK_ID, VOCAB_SIZE = 2, 3, 4, 1_000
CONTINUES = np.arange(VOCAB_SIZE) >= 900


def rule(masked_lm_prob: float = 0.15, most: int = 64) -> DynamicMasking:
    return DynamicMasking(masked_lm_prob, most, CLS_ID, SEP_ID, MASK_ID, VOCAB_SIZE, CONTINUES, spans=True)


def masked(masking: DynamicMasking, rows: list[list[int]], numbers: list[int]) -> list[tuple[list[int], list[int]]]:
    """Per row its ids after masking, and the positions."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    input_ids = np.array([token for row in rows for token in row], dtype=np.uint16)
    keys = row_keys(np.array(numbers, dtype=np.int64), 5)
    counts = masking.num_predictions(input_ids, offsets, keys)
    positions, _ = masking.apply(input_ids, lengths, keys, counts)
    edges = np.concatenate([[0], np.cumsum(counts)])
    return [
        (input_ids[first:last].tolist(), (positions[start:end] - first).tolist())
        for (first, last), (start, end) in zip(pairwise(offsets), pairwise(edges), strict=True)
    ]


def words_of(row: list[int]) -> list[list[int]]:
    """Positions of each word; specials are none, and what follows one begins a word."""
    words: list[list[int]] = []
    for position, token in enumerate(row):
        if token in (CLS_ID, SEP_ID):
            continue
        if CONTINUES[token] and words and words[-1][-1] == position - 1:
            words[-1].append(position)
        else:
            words.append([position])
    return words


def masked_one_after_the_other(masking: DynamicMasking, row: list[int], number: int) -> tuple[list[int], list[int]]:
    """The rule written out for one row, on Python integers."""
    key, words = derive_key(keyed_seed("masks", 5), number), words_of(row)
    maskable = sum(map(len, words))
    wanted = min(masking.max_predictions_per_seq, max(1, round(len(row) * masking.masked_lm_prob)), maskable)
    anchors: dict[int, int] = {}
    round_number = -1
    while len(anchors) < wanted:
        round_number += 1
        start = ((derive_key(key, (3 << 16) + round_number) >> 32) * len(words)) >> 32
        uniform = (derive_key(key, (4 << 16) + round_number) >> 11) / (1 << 53)
        length = 1 + sum(uniform >= bound for bound in np.cumsum(LENGTH_SHARES)[:-1])
        if words[start][0] in anchors:
            continue
        for index in range(start, min(start + length, len(words))):
            if index > start and words[index][0] != words[index - 1][-1] + 1:
                break
            for position in words[index]:
                if len(anchors) < wanted and position not in anchors:
                    anchors[position] = words[start][0]
    ids = list(row)
    for position, anchor in anchors.items():
        fate = (derive_key(key, anchor + (1 << 16)) >> 11) / (1 << 53)
        if fate < masking.shares.mask:
            ids[position] = MASK_ID
        elif fate >= 1 - masking.shares.random:
            ids[position] = ((derive_key(key, position + (2 << 16)) >> 32) * VOCAB_SIZE) >> 32
    return ids, sorted(anchors)


rows_strategy = st.lists(
    st.lists(st.sampled_from([SEP_ID, 1, 5, 6, 700, 950, 951]), min_size=1, max_size=60).map(
        lambda words: [CLS_ID, *words, SEP_ID]
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rows=rows_strategy, masked_lm_prob=st.sampled_from([0.05, 0.15, 0.5]), first=st.integers(0, 2**40))
def test_spans_equal_a_sequential_reference(rows: list[list[int]], masked_lm_prob: float, first: int) -> None:
    masking, numbers = rule(masked_lm_prob), list(range(first, first + len(rows)))
    found = masked(masking, rows, numbers)
    expected = [masked_one_after_the_other(masking, row, number) for row, number in zip(rows, numbers, strict=True)]
    assert found == expected
    assert masked(masking, rows[::-1], numbers[::-1]) == found[::-1]


def test_lengths_are_those_of_spanbert() -> None:
    """Of the first span of each row, which is complete: the rows want as many tokens as the longest one has."""
    assert np.dot(LENGTH_SHARES, np.arange(1, MOST_WORDS + 1)) == pytest.approx(3.8, abs=0.05)  # section 3.1
    num_rows, length = 4_000, 50
    starts = np.arange(num_rows * length)
    words = Words(starts, np.ones_like(starts), starts // length)
    generator = np.random.default_rng(2)

    def middle(rows: np.ndarray, number: int) -> np.ndarray:
        # The first span starts at word 25, later ones at word 5 or 40.
        word = 25 if number == 0 else 5 if number % 2 else 40
        return np.full(len(rows), ((word << 32) + (1 << 31)) // length, dtype=np.uint64) << np.uint64(32)

    def any_length(rows: np.ndarray, _number: int) -> np.ndarray:
        return generator.integers(0, 1 << 64, len(rows), dtype=np.uint64)

    found = choose_spans(words, len(starts), np.full(num_rows, MOST_WORDS), middle, any_length)
    assert len(found.positions) == num_rows * MOST_WORDS
    lengths = Counter(Counter(found.anchors[found.anchors % length == 25].tolist()).values())
    counts = [lengths[number] for number in range(1, MOST_WORDS + 1)]
    assert sum(counts) == num_rows
    assert stats.chisquare(counts, num_rows * LENGTH_SHARES).pvalue > 1e-3


def test_the_tokens_of_a_span_have_one_fate() -> None:
    row = [CLS_ID, *[700] * 62, SEP_ID]
    fates = Counter[str]()
    for ids, positions in masked(rule(0.15), [row] * 3_000, list(range(3_000))):
        for _, run in groupby(enumerate(positions), lambda pair: pair[1] - pair[0]):
            tokens = {ids[position] for _, position in run}
            fates["mask" if tokens == {MASK_ID} else "kept" if tokens == {700} else "other"] += 1
    total = sum(fates.values())
    # Neighbouring spans may have different fates, so these are bounds.
    assert 0.74 < fates["mask"] / total < 0.81
    assert 0.05 < fates["kept"] / total < 0.11


def test_rows_have_their_number_of_predictions_whatever_their_words() -> None:
    generator = np.random.default_rng(1)
    rows = [[CLS_ID, *generator.integers(5, VOCAB_SIZE, 126).tolist(), SEP_ID] for _ in range(300)]
    for _, positions in masked(rule(0.15), rows, list(range(300))):
        assert len(positions) == round(0.15 * 128)


def test_a_recipe_selects_spans() -> None:
    metadata = {"clozeworks.masked_lm_prob": "0.15", "clozeworks.max_predictions_per_seq": "20"}
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word", "##s"]
    for written in ("static", "dynamic", "whole_word", "dynamic_whole_word"):
        found: Any = masking_of({**metadata, "clozeworks.masking": written}, tokens, "dynamic_span")
        assert found.spans
        assert found.continues.tolist() == [False] * 6 + [True]
    shares = MaskSharesConfig(mask=1.0, random=0.0)
    assert masking_of(metadata, tokens, "dynamic_span", shares=shares).shares == shares  # type: ignore[union-attr]
