"""Masks drawn at reading: the static rule and its statistics, by a hash that anyone can follow."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from tests.support.preprocessing.references import derive_key

from pipelines.contract.errors import InputError
from pipelines.examples.masking import MaskingRules, build_examples, num_predictions
from pipelines.examples.planned_rows import PlannedRows
from training.data.dynamic_masking import DynamicMasking, masking_of, row_keys
from training.data.ordering import keyed_seed
from training.data.rows import Ragged, Rows
from training.settings.pretraining import BERT_SHARES, MaskSharesConfig

CLS_ID, SEP_ID, MASK_ID, VOCAB_SIZE = 2, 3, 4, 1_000
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(VOCAB_SIZE - 5))]


def rule(
    masked_lm_prob: float = 0.15, max_predictions_per_seq: int = 20, shares: MaskSharesConfig = BERT_SHARES
) -> DynamicMasking:
    return DynamicMasking(masked_lm_prob, max_predictions_per_seq, CLS_ID, SEP_ID, MASK_ID, VOCAB_SIZE, shares=shares)


def masked(
    masking: DynamicMasking, rows: list[list[int]], numbers: list[int], *stream: int | str
) -> list[tuple[list[int], list[int], list[int]]]:
    """Per row its ids after masking, the positions, and what stood there."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    input_ids = np.array([token for row in rows for token in row], dtype=np.uint16)
    keys = row_keys(np.array(numbers, dtype=np.int64), *stream)
    counts = masking.num_predictions(input_ids, offsets, keys)
    positions, masked_ids = masking.apply(input_ids, lengths, keys, counts)
    edges = np.concatenate([[0], np.cumsum(counts)])
    return [
        (
            input_ids[first:last].tolist(),
            (positions[start:end] - first).tolist(),
            masked_ids[start:end].tolist(),
        )
        for (first, last), (start, end) in zip(pairwise(offsets), pairwise(edges), strict=True)
    ]


def masked_in_plain_python(
    masking: DynamicMasking, row: list[int], number: int, *stream: int | str
) -> tuple[list[int], list[int], list[int]]:
    """The rule written out for one row, on Python integers."""
    key = derive_key(keyed_seed("masks", *stream), number)
    words = [position for position, token in enumerate(row) if token not in (CLS_ID, SEP_ID)]
    wanted = min(masking.max_predictions_per_seq, max(1, round(len(row) * masking.masked_lm_prob)), len(words))
    positions = sorted(sorted(words, key=lambda position: (derive_key(key, position) >> 33, position))[:wanted])
    ids = list(row)
    for position in positions:
        fate = (derive_key(key, position + (1 << 16)) >> 11) / (1 << 53)
        if fate < masking.shares.mask:
            ids[position] = MASK_ID
        elif fate >= 1 - masking.shares.random:
            ids[position] = ((derive_key(key, position + (2 << 16)) >> 32) * VOCAB_SIZE) >> 32
    return ids, positions, [row[position] for position in positions]


rows_strategy = st.lists(
    st.lists(st.sampled_from([SEP_ID, 1, 5, 6, 700, 999]), min_size=0, max_size=60).map(
        lambda words: [CLS_ID, *words, SEP_ID]
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=rows_strategy,
    masked_lm_prob=st.sampled_from([0.01, 0.15, 0.4, 0.5]),
    max_predictions_per_seq=st.integers(1, 30),
    first_number=st.integers(0, 2**40),
    seed=st.integers(0, 2**62),
    cut=st.integers(0, 30),
    shares=st.sampled_from([(0.8, 0.1), (1.0, 0.0), (0.8, 0.0), (0.8, 0.2), (0.0, 0.2), (0.0, 1.0)]),
)
def test_masks_equal_plain_python_and_do_not_depend_on_the_batch(
    rows: list[list[int]],
    masked_lm_prob: float,
    max_predictions_per_seq: int,
    first_number: int,
    seed: int,
    cut: int,
    shares: tuple[float, float],
) -> None:
    masking = rule(masked_lm_prob, max_predictions_per_seq, MaskSharesConfig(mask=shares[0], random=shares[1]))
    numbers = list(range(first_number, first_number + len(rows)))
    found = masked(masking, rows, numbers, seed, "phase0", 3)
    assert found == [
        masked_in_plain_python(masking, row, number, seed, "phase0", 3)
        for row, number in zip(rows, numbers, strict=True)
    ]
    cut = min(cut, len(rows))
    parts = [
        masked(masking, rows[part], numbers[part], seed, "phase0", 3)
        for part in (slice(cut, None), slice(0, cut))
        if rows[part]
    ]
    assert [row for part in reversed(parts) for row in part] == found
    assert masked(masking, rows[::-1], numbers[::-1], seed, "phase0", 3) == found[::-1]


def test_more_rows_than_a_group_holds() -> None:
    rows = [[CLS_ID, *range(5, 5 + length % 7), SEP_ID] for length in range(700)]
    found = masked(rule(), rows, list(range(700)), 1)
    assert found == [masked_in_plain_python(rule(), row, number, 1) for number, row in enumerate(rows)]


def test_the_longest_row_that_positions_can_count() -> None:
    row = [CLS_ID, *(5 + number % 900 for number in range(65_533)), SEP_ID]
    few, many = rule(), rule(max_predictions_per_seq=65_535)
    # The second row has fewer predictions, whose places are filled up by the largest position.
    rows = [row, [CLS_ID, 5, 6, SEP_ID]]
    for masking in (few, many):
        assert masked(masking, rows, [0, 1], 1) == [
            masked_in_plain_python(masking, row, n, 1) for n, row in enumerate(rows)
        ]


def static_and_dynamic(num_rows: int, length: int) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """The same pairs masked statically and at reading: (ids [rows, length], rows, positions, masked ids)."""
    half = (length - 3) // 2
    words = np.random.default_rng(5).integers(5, VOCAB_SIZE, num_rows * 2 * half).astype(np.int32)
    starts = np.arange(num_rows * 2, dtype=np.int64) * half
    planned = PlannedRows(
        pieces=np.stack([starts, starts + half], axis=1),
        offsets=np.arange(num_rows + 1, dtype=np.int64) * 2,
        keys=np.random.default_rng(6).integers(0, 1 << 63, num_rows).astype(np.uint64),
        next_sentence_label=np.zeros(num_rows, np.uint8),
        has_segment_b=True,
    )
    rules = MaskingRules(0.15, 20, False, CLS_ID, SEP_ID, MASK_ID, np.zeros(VOCAB_SIZE, np.bool_))
    static = build_examples(words, planned, rules)
    lengths = np.diff(static.offsets)
    assert (np.diff(static.masked_lm_offsets) == num_predictions(int(lengths[0]), 0.15, 20)).all()
    row_of = np.repeat(np.arange(num_rows), np.diff(static.masked_lm_offsets))
    flat = static.masked_lm_positions + static.offsets[row_of]
    restored = static.input_ids.copy()
    restored[flat] = static.masked_lm_ids
    dynamic_ids = restored.astype(np.uint16)
    keys = row_keys(np.arange(num_rows), 9)
    counts = rule().num_predictions(dynamic_ids, static.offsets, keys)
    positions, masked_ids = rule().apply(dynamic_ids, lengths, keys, counts)
    shape = (num_rows, int(lengths[0]))
    return (
        (static.input_ids.reshape(shape), row_of, static.masked_lm_positions.astype(np.int64), static.masked_lm_ids),
        (dynamic_ids.reshape(shape), np.repeat(np.arange(num_rows), counts), positions % shape[1], masked_ids),
    )


def test_statistics_are_those_of_static_masks() -> None:
    static, dynamic = static_and_dynamic(num_rows=6_000, length=129)
    fates, places, drawn = [], [], []
    for ids, rows, positions, masked_ids in (static, dynamic):
        now = ids[rows, positions]
        is_mask, is_kept = now == MASK_ID, now == masked_ids
        is_random = ~is_mask & ~is_kept
        fates.append([is_mask.sum(), is_kept.sum(), is_random.sum()])
        places.append(np.bincount(positions, minlength=ids.shape[1]))
        drawn.append(np.bincount(now[is_random] // 50, minlength=VOCAB_SIZE // 50))
    assert sum(fates[0]) == sum(fates[1]) == 6_000 * 19
    expected = np.array([0.8 + 0.1 / VOCAB_SIZE, 0.1 + 0.1 / VOCAB_SIZE, 0.1 - 0.2 / VOCAB_SIZE]) * sum(fates[1])
    assert stats.chisquare(fates[1], expected).pvalue > 1e-4
    assert stats.chi2_contingency([fates[0], fates[1]]).pvalue > 1e-4
    # Special tokens are never chosen; all other places equally often, in both.
    is_word = np.ones(129, np.bool_)
    is_word[[0, 64, 128]] = False
    for one in places:
        assert one[~is_word].tolist() == [0, 0, 0]
        assert stats.chisquare(one[is_word]).pvalue > 1e-4
    # The random token is drawn from the entire vocabulary, including special tokens ([MASK] is counted above).
    assert stats.chisquare(drawn[1][1:]).pvalue > 1e-4
    assert stats.chi2_contingency(drawn).pvalue > 1e-4


@pytest.mark.parametrize(("mask", "random"), [(0.8, 0.1), (1.0, 0.0), (0.8, 0.0), (0.8, 0.2), (0.0, 0.2), (0.0, 1.0)])
def test_fates_have_the_shares_of_table_8(mask: float, random: float) -> None:
    masking = rule(0.15, 20, MaskSharesConfig(mask=mask, random=random))
    word = 700
    rows = masked(masking, [[CLS_ID, *[word] * 98, SEP_ID]] * 2_000, list(range(2_000)), 7)
    fates = [ids[position] for ids, positions, _ in rows for position in positions]
    counts = [fates.count(MASK_ID), sum(fate not in (MASK_ID, word) for fate in fates), fates.count(word)]
    expected = [share * len(fates) for share in (mask, random, 1 - mask - random)]
    for count, mean in zip(counts, expected, strict=True):
        if not round(mean):
            # A random token may be the same word, or [MASK].
            assert count < 0.005 * len(fates)
    drawn = [index for index, mean in enumerate(expected) if round(mean)]
    if len(drawn) > 1:
        assert (
            stats.chisquare(
                [counts[index] for index in drawn], [expected[index] for index in drawn], sum_check=False
            ).pvalue
            > 1e-3
        )


def test_shares_other_than_berts_need_masks_drawn_by_training() -> None:
    metadata = {"clozeworks.masked_lm_prob": "0.15", "clozeworks.max_predictions_per_seq": "20"}
    shares = MaskSharesConfig(mask=1.0, random=0.0)
    with pytest.raises(InputError, match=r"mask_shares = 1 \[MASK\], 0 random, .* set pretraining.masking = 'dynamic'"):
        masking_of(metadata, TOKENS, shares=shares)
    found = masking_of(metadata, TOKENS, "dynamic", shares=shares)
    assert found is not None
    assert found.shares == shares
    with pytest.raises(ValidationError, match="more than all tokens"):
        MaskSharesConfig(mask=0.9, random=0.2)


def test_choices_of_neighbours_and_epochs_are_independent() -> None:
    rows = [[CLS_ID, *([7] * 98), SEP_ID]] * 2_000

    def is_chosen(epoch: int) -> np.ndarray:
        table = np.zeros((len(rows), 100), np.bool_)
        for index, (_, positions, _) in enumerate(masked(rule(), rows, list(range(len(rows))), 1, epoch)):
            table[index, positions] = True
        return table[:, 1:-1]

    first, second = is_chosen(0), is_chosen(1)
    # Two sets of 15 of 98 meet in 15 * 15 / 98 places on average; [rows] means with their standard error.
    for other, count in ((second, 2_000), (np.roll(first, 1, axis=0), 2_000)):
        meeting = (first & other).sum(axis=1)
        error = meeting.std() / np.sqrt(count)
        assert abs(meeting.mean() - 15 * 15 / 98) < 4 * error
    # Neighbouring tokens are chosen together as often as any two tokens are.
    together = (first[:, 1:] & first[:, :-1]).mean()
    assert together == pytest.approx(15 * 14 / (98 * 97), rel=0.04)


def test_written_masks_are_put_back_before_others_are_drawn() -> None:
    # Row 0 was [CLS] 10 11 12 [SEP]; its word 11 had become [SEP], which must not pass for a special token.
    ids = Ragged(np.array([2, 10, 3, 12, 3, 2, 4, 3], np.uint16), np.array([0, 5, 8]))
    positions = Ragged(np.array([2, 1], np.uint16), np.array([0, 1, 2]))
    masked_ids = Ragged(np.array([11, 20], np.uint16), np.array([0, 1, 2]))
    plain = np.zeros(2, np.uint8)
    rows = Rows(ids, plain, positions, masked_ids, plain).without_masks()
    assert rows.input_ids.values.tolist() == [2, 10, 11, 12, 3, 2, 20, 3]
    assert rows.masked_lm_positions.lengths().tolist() == [0, 0]
    counts = rule(0.5, 20).num_predictions(rows.input_ids.values, rows.input_ids.offsets, row_keys(np.arange(2)))
    assert counts.tolist() == [2, 1]


def test_the_rule_comes_from_the_files() -> None:
    metadata = {
        "clozeworks.masking": "dynamic",
        "clozeworks.masked_lm_prob": "0.4",
        "clozeworks.max_predictions_per_seq": "51",
        "clozeworks.max_seq_length": "128",
    }
    expected = DynamicMasking(0.4, 51, CLS_ID, SEP_ID, MASK_ID, VOCAB_SIZE)
    assert masking_of(metadata, TOKENS) == expected
    static = {**metadata, "clozeworks.masking": "static"}
    assert masking_of(static, TOKENS) is None
    assert masking_of(static, TOKENS, "dynamic") == expected
    for written in ("whole_word", "dynamic_whole_word"):
        with pytest.raises(InputError, match=f"made with examples.masking = {written}; set it to dynamic_whole_word"):
            masking_of({**metadata, "clozeworks.masking": written}, TOKENS, "dynamic")
    with pytest.raises(InputError, match="do not record masked_lm_prob"):
        masking_of({"clozeworks.masking": "dynamic"}, TOKENS)
    assert masking_of({**metadata, "clozeworks.masking": "whole_word"}, TOKENS) is None


def test_whole_words_come_from_either_setting() -> None:
    metadata = {"clozeworks.masked_lm_prob": "0.4", "clozeworks.max_predictions_per_seq": "51"}
    tokens = [*TOKENS[:-1], "##s"]
    pairs = [(written, "dynamic_whole_word") for written in ("static", "dynamic", "whole_word", "dynamic_whole_word")]
    for written, masking in [*pairs, ("dynamic_whole_word", "as_written")]:
        found = masking_of({**metadata, "clozeworks.masking": written}, tokens, masking)
        assert found is not None
        assert found.continues is not None
        assert np.flatnonzero(found.continues).tolist() == [VOCAB_SIZE - 1]


def test_a_phase_has_its_own_share() -> None:
    metadata = {
        "clozeworks.masking": "static",
        "clozeworks.masked_lm_prob": "0.15",
        "clozeworks.max_predictions_per_seq": "20",
        "clozeworks.max_seq_length": "128",
    }
    expected = DynamicMasking(0.4, 128, CLS_ID, SEP_ID, MASK_ID, VOCAB_SIZE)
    assert masking_of(metadata, TOKENS, "dynamic", 0.4) == expected
    with pytest.raises(InputError, match=r"masked_lm_prob = 0.4 in a phase, .* set pretraining.masking = 'dynamic'"):
        masking_of(metadata, TOKENS, "as_written", 0.4)


def test_masks_are_pinned() -> None:
    # A change here changes the masks of every run that is under way: raise PRETRAINING_VERSION with it.
    row: Any = [CLS_ID, *range(10, 30), SEP_ID]
    assert masked(rule(), [row], [5], 1, "phase0", 0)[0][1] == [2, 7, 13]
