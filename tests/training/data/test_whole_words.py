"""Whole words masked at reading: the rule in plain Python, and the statistics of whole words masked beforehand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.support.preprocessing.references import derive_key
from tests.support.preprocessing.token_documents import CLS, CONTINUATIONS, MASK, SEP, VOCABULARY_SIZE, random_corpus
from tests.support.preprocessing.token_documents import rules as static_rules

from pipelines.examples.masking import build_examples
from pipelines.examples.sentence_pairs import plan_pairs, rows_of_pairs
from training.data.dynamic_masking import DynamicMasking, row_keys
from training.data.ordering import keyed_seed

CONTINUES = np.array([token in CONTINUATIONS for token in range(VOCABULARY_SIZE)])
RULE = DynamicMasking(0.15, 20, CLS, SEP, MASK, VOCABULARY_SIZE, CONTINUES)


def chosen_positions(
    masking: DynamicMasking, rows: list[list[int]], first_number: int, *stream: int
) -> list[list[int]]:
    lengths = np.array([len(row) for row in rows])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    input_ids = np.array([token for row in rows for token in row], np.uint16)
    keys = row_keys(np.arange(first_number, first_number + len(rows)), *stream)
    counts = masking.num_predictions(input_ids, offsets, keys)
    positions, masked_ids = masking.apply(input_ids, lengths, keys, counts)
    flat = [token for row in rows for token in row]
    assert masked_ids.tolist() == [flat[position] for position in positions]
    parts = np.split(positions, np.cumsum(counts)[:-1])
    return [(part - first).tolist() for part, first in zip(parts, offsets, strict=False)]


def words_in_plain_python(masking: DynamicMasking, row: list[int], number: int, *stream: int) -> list[int]:
    """`create_masked_lm_predictions` with --do_whole_word_mask for one row, on Python integers."""
    key = derive_key(keyed_seed("masks", *stream), number)
    words: list[list[int]] = []
    for position, token in enumerate(row):
        if token in (CLS, SEP):
            continue
        if token in CONTINUATIONS and row[position - 1] not in (CLS, SEP):
            words[-1].append(position)
        else:
            words.append([position])
    wanted = min(masking.max_predictions_per_seq, max(1, round(len(row) * masking.masked_lm_prob)))
    chosen: list[int] = []
    for word in sorted(words, key=lambda word: (derive_key(key, word[0]) >> 33, word[0])):
        if len(chosen) >= wanted:
            break
        if len(chosen) + len(word) <= wanted:
            chosen += word
    return sorted(chosen)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    # Three of four tokens continue a word, so many rows have no words that add up to what is wanted.
    rows=st.lists(
        st.lists(st.sampled_from([SEP, 7, 41, 42, 55, 59, 43, 44]), min_size=0, max_size=60).map(
            lambda words: [CLS, *words, SEP]
        ),
        min_size=1,
        max_size=30,
    ),
    masked_lm_prob=st.sampled_from([0.01, 0.15, 0.5]),
    most=st.integers(1, 30),
    first_number=st.integers(0, 2**40),
    seed=st.integers(0, 2**62),
    cut=st.integers(0, 30),
)
def test_words_equal_plain_python_and_do_not_depend_on_the_batch(
    rows: list[list[int]], masked_lm_prob: float, most: int, first_number: int, seed: int, cut: int
) -> None:
    masking = replace(RULE, masked_lm_prob=masked_lm_prob, max_predictions_per_seq=most)
    found = chosen_positions(masking, rows, first_number, seed, 3)
    expected = [words_in_plain_python(masking, row, first_number + place, seed, 3) for place, row in enumerate(rows)]
    assert found == expected
    cut = min(cut, len(rows) - 1)
    assert chosen_positions(masking, rows[cut:], first_number + cut, seed, 3) == found[cut:]


def test_more_rows_than_a_group_holds() -> None:
    rows = [[CLS, *([7, 41, 42] * (length % 7)), SEP] for length in range(700)]
    expected = [words_in_plain_python(RULE, row, number, 1) for number, row in enumerate(rows)]
    assert chosen_positions(RULE, rows, 0, 1) == expected


def test_words_of_one_piece_are_masked_like_tokens() -> None:
    rows = [[CLS, *range(5, 5 + length), SEP, 8, SEP] for length in range(1, 35)]
    assert chosen_positions(RULE, rows, 0, 1) == chosen_positions(replace(RULE, continues=None), rows, 0, 1)


def test_statistics_are_those_of_words_masked_beforehand() -> None:
    documents = random_corpus(300)
    plan = rows_of_pairs(documents, plan_pairs(documents, np.uint64(1), 64, 0.0), np.uint64(2))
    written = build_examples(documents.input_ids, plan, static_rules(whole_word=True))
    unmasked = build_examples(documents.input_ids, plan, static_rules(is_dynamic=True))
    input_ids, keys = unmasked.input_ids.astype(np.uint16), row_keys(np.arange(len(plan.keys)), 9)
    lengths = np.diff(unmasked.offsets)
    counts = RULE.num_predictions(input_ids, unmasked.offsets, keys)
    positions, masked_ids = RULE.apply(input_ids, lengths, keys, counts)
    static_positions = np.repeat(written.offsets[:-1], np.diff(written.masked_lm_offsets)) + written.masked_lm_positions
    # How many tokens a row predicts, how often words of each size are chosen, and what becomes of them.
    per_row, sizes, fates = [], [], []
    continues = CONTINUES[unmasked.input_ids]
    for now, places, labels, each in (
        (written.input_ids, static_positions, written.masked_lm_ids, np.diff(written.masked_lm_offsets)),
        (input_ids, positions, masked_ids, counts),
    ):
        per_row.append(np.bincount(each, minlength=21))
        starts = np.flatnonzero(~continues[places] | np.isin(unmasked.input_ids[places - 1], [CLS, SEP]))
        sizes.append(np.bincount(np.minimum(np.diff(starts, append=len(places)), 5), minlength=6)[1:])
        fates.append([(now[places] == MASK).sum(), (now[places] == labels).sum(), len(places)])
    assert per_row[0].sum() == per_row[1].sum() > 1_000
    table = np.array(per_row)
    assert stats.chi2_contingency(table[:, table.sum(axis=0) > 20]).pvalue > 1e-4
    assert stats.chi2_contingency(sizes).pvalue > 1e-4
    assert stats.chi2_contingency(fates).pvalue > 1e-4
    assert counts.sum() == pytest.approx(written.masked_lm_offsets[-1], rel=0.01)
