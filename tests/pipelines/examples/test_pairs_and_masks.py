"""Next-sentence pairs and masks against plain-list versions of the released code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.support.preprocessing.references import Pair, Stream, derive_key, masked, pairs_of_document
from tests.support.preprocessing.token_documents import (
    CONTINUATIONS,
    SPECIAL,
    VOCABULARY_SIZE,
    Documents,
    flat,
    row_of,
    rules,
)

from pipelines import seeding
from pipelines.examples.masking import build_examples, num_predictions
from pipelines.examples.planned_rows import TokenizedDocuments, join_rows
from pipelines.examples.sentence_pairs import plan_pairs, rows_of_pairs
from pipelines.seeding import key_of


def segments(documents: TokenizedDocuments, plan: np.ndarray) -> list[Pair]:
    ids = documents.input_ids
    return [(ids[row[0] : row[1]].tolist(), ids[row[2] : row[3]].tolist(), int(row[4])) for row in plan]


SENTENCES = st.lists(st.integers(5, VOCABULARY_SIZE - 1), min_size=1, max_size=12)
CORPORA = st.lists(st.lists(SENTENCES, min_size=1, max_size=9), min_size=2, max_size=5)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(documents=CORPORA, seed=st.integers(0, 2**32), length=st.integers(8, 40), short=st.sampled_from([0.0, 0.1, 1.0]))
def test_pairs_equal_the_reference(documents: Documents, seed: int, length: int, short: float) -> None:
    tokenized, key = flat(documents), key_of(seed, 1)
    expected = [
        pair
        for index, document_key in enumerate(tokenized.document_keys.tolist())
        for pair in pairs_of_document(documents, index, Stream(derive_key(int(key), document_key)), length, short)
    ]
    assert segments(tokenized, plan_pairs(tokenized, key, length, short)) == expected


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(documents=CORPORA, seed=st.integers(0, 2**32), whole_word=st.booleans(), most=st.integers(1, 9))
def test_masks_equal_the_reference(documents: Documents, seed: int, whole_word: bool, most: int) -> None:
    tokenized, key = flat(documents), key_of(seed, 2)
    plan = plan_pairs(tokenized, key_of(seed, 1), 30, 0.1)
    rows = rows_of_pairs(tokenized, plan, key)
    examples = build_examples(tokenized.input_ids, rows, rules(whole_word, 0.3, most))
    assert rows.lengths.tolist() == np.diff(examples.offsets).tolist()
    for number, (pair, row) in enumerate(zip(segments(tokenized, plan), plan.tolist(), strict=True)):
        stream = Stream(derive_key(derive_key(int(key), int(tokenized.document_keys[row[5]])), row[6]))
        expected = masked(pair[:2], stream, 0.3, most, whole_word, SPECIAL, CONTINUATIONS, VOCABULARY_SIZE)
        assert row_of(examples, number) == expected
        assert examples.segment_b_start[number] == len(pair[0]) + 2
        assert examples.next_sentence_label[number] == pair[2]


@settings(max_examples=100, deadline=None)
@given(documents=CORPORA, seed=st.integers(0, 2**32))
def test_dynamic_masking_leaves_what_static_masking_restores(documents: Documents, seed: int) -> None:
    tokenized = flat(documents)
    rows = rows_of_pairs(tokenized, plan_pairs(tokenized, key_of(seed, 1), 30, 0.1), key_of(seed, 2))
    dynamic = build_examples(tokenized.input_ids, rows, rules(is_dynamic=True))
    static = build_examples(tokenized.input_ids, rows, rules())
    for number in range(len(rows.keys)):
        ids, positions, labels = row_of(static, number)
        for position, label in zip(positions, labels, strict=True):
            ids[position] = label
        assert row_of(dynamic, number) == (ids, [], [])
    assert dynamic.segment_b_start.tolist() == static.segment_b_start.tolist()


@settings(max_examples=100, deadline=None)
@given(documents=CORPORA, data=st.data())
def test_a_row_is_the_same_wherever_it_is_taken(documents: Documents, data: st.DataObject) -> None:
    tokenized = flat(documents)
    plans = [
        rows_of_pairs(tokenized, plan_pairs(tokenized, key_of(number, 1), 20, 0.1), key_of(number, 2))
        for number in range(2)
    ]
    separate = [
        row_of(build_examples(tokenized.input_ids, plan, rules()), row)
        for plan in plans
        for row in range(len(plan.keys))
    ]
    rows = data.draw(st.lists(st.integers(0, len(separate) - 1)))
    taken = build_examples(tokenized.input_ids, join_rows(plans).take(np.array(rows, np.int64)), rules())
    assert [row_of(taken, number) for number in range(len(rows))] == [separate[row] for row in rows]


def test_a_lone_document_gives_true_continuations_only() -> None:
    document = [[10 * number + 5 + place for place in range(5)] for number in range(8)]
    tokenized = flat([document])
    text = tokenized.input_ids.tolist()
    plan = plan_pairs(tokenized, key_of(1), 13, 0.0)
    assert len(plan) > 2
    for tokens_a, tokens_b, label in segments(tokenized, plan):
        assert label == 0
        assert text.index(tokens_b[0]) > text.index(tokens_a[-1])


def test_a_lone_document_of_one_sentence_gives_nothing() -> None:
    assert len(plan_pairs(flat([[[7, 8, 9]]]), key_of(1), 16, 0.1)) == 0


def test_random_next_never_comes_from_the_same_document() -> None:
    documents = [[[5 + index] * 6 for _ in range(20)] for index in range(4)]
    tokenized = flat(documents)
    for tokens_a, tokens_b, label in segments(tokenized, plan_pairs(tokenized, key_of(3), 40, 0.1)):
        assert (set(tokens_a) == set(tokens_b)) == (label == 0)


@pytest.mark.parametrize(("length", "expected"), [(3, 1), (10, 2), (30, 4), (50, 8), (128, 19), (512, 20)])
def test_number_of_predictions(length: int, expected: int) -> None:
    assert num_predictions(length, 0.15, 20) == min(20, max(1, round(length * 0.15))) == expected


def test_a_documents_examples_do_not_depend_on_its_place() -> None:
    documents = [[[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]]]
    one = flat(documents)
    other = flat(documents[::-1])
    other.document_keys[:] = one.document_keys[::-1]
    plans = [segments(each, plan_pairs(each, key_of(9), 16, 0.1)) for each in (one, other)]
    assert sorted(plans[0]) == sorted(plans[1])


def test_streams_are_uniform_and_equal_the_reference() -> None:
    stream = np.array([seeding.derive_key(key_of(5), 6), 0], np.uint64)
    reference = Stream(derive_key(derive_mix(5), 6))
    assert [int(seeding.next_bits(stream)) for _ in range(5)] == [reference.bits() for _ in range(5)]
    draws = [seeding.next_below(stream, 50) for _ in range(100_000)]
    assert stats.chisquare(np.bincount(draws, minlength=50)).pvalue > 1e-4


def derive_mix(seed: int) -> int:
    return int(key_of(seed))
