"""Rows of full sentences against a plain-list version, and what must hold of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.preprocessing.references import Stream, derive_key, full_sentence_rows, masked
from tests.support.preprocessing.token_documents import (
    CLS,
    CONTINUATIONS,
    SEP,
    SPECIAL,
    VOCABULARY_SIZE,
    Documents,
    flat,
    row_of,
    rules,
)

from pipelines.examples.full_sentences import plan_full_sentences
from pipelines.examples.masking import build_examples
from pipelines.seeding import key_of

SENTENCES = st.lists(st.integers(5, VOCABULARY_SIZE - 1), min_size=1, max_size=40)
CORPORA = st.lists(st.lists(SENTENCES, min_size=1, max_size=6), min_size=1, max_size=6)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    documents=CORPORA, seed=st.integers(0, 2**32), length=st.integers(8, 40), whole_word=st.booleans(), data=st.data()
)
def test_rows_and_masks_equal_the_reference(
    documents: Documents, seed: int, length: int, whole_word: bool, data: st.DataObject
) -> None:
    tokenized, order_key, mask_key = flat(documents), key_of(seed, 1), key_of(seed, 2)
    prob = data.draw(st.sampled_from([0.15, 0.5]))
    plan = plan_full_sentences(tokenized, order_key, mask_key, length)
    examples = build_examples(tokenized.input_ids, plan, rules(whole_word, prob))
    keys = tokenized.document_keys.tolist()
    expected = full_sentence_rows(documents, keys, int(order_key), length)
    assert len(plan.keys) == len(expected)
    for number, (pieces, document, token) in enumerate(expected):
        stream = Stream(derive_key(derive_key(int(mask_key), keys[document]), token))
        row = masked(pieces, stream, prob, 20, whole_word, SPECIAL, CONTINUATIONS, VOCABULARY_SIZE)
        assert row_of(examples, number) == row
        assert examples.segment_b_start[number] == len(row[0]) == plan.lengths[number]
    assert not examples.next_sentence_label.any()


@settings(max_examples=200, deadline=None)
@given(documents=CORPORA, seed=st.integers(0, 2**32), length=st.integers(8, 60))
def test_nothing_is_lost_and_nothing_too_long(documents: Documents, seed: int, length: int) -> None:
    tokenized = flat(documents)
    plan = plan_full_sentences(tokenized, key_of(seed, 1), key_of(seed, 2), length)
    examples = build_examples(tokenized.input_ids, plan, rules(is_dynamic=True))
    rows = [row_of(examples, number)[0] for number in range(len(plan.keys))]
    assert max(map(len, rows)) <= length
    texts = []
    for row in rows:
        assert row[0] == CLS
        assert row[-1] == SEP
        assert [SEP, SEP] not in [row[place : place + 2] for place in range(len(row))]
        texts += [token for token in row if token not in (CLS, SEP)]
    assert sorted(texts) == sorted(tokenized.input_ids.tolist())
    assert len(set(plan.keys.tolist())) == len(plan.keys)


def test_a_border_between_documents_gets_a_separator_and_a_long_sentence_is_cut() -> None:
    documents = [[[5, 6], [7, 8]], [[9, 10, 11]], [list(range(12, 32))]]
    seen = set()
    for number in range(200):
        plan = plan_full_sentences(flat(documents), key_of(number), key_of(0), 12)
        examples = build_examples(flat(documents).input_ids, plan, rules(is_dynamic=True))
        seen.add(tuple(tuple(row_of(examples, row)[0]) for row in range(len(plan.keys))))
    assert len(seen) == 6
    short = (CLS, 5, 6, 7, 8, SEP, 9, 10, 11, SEP)
    long = [(CLS, *range(12, 22), SEP), (CLS, *range(22, 32), SEP)]
    assert (short, *long) in seen
    assert (*long, short) in seen


def test_rows_do_not_depend_on_the_place_of_documents() -> None:
    documents = [[[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]], [[15, 16, 17, 18]]]
    one, other = flat(documents), flat(documents[::-1])
    other.document_keys[:] = one.document_keys[::-1]
    rows = []
    for each in (one, other):
        plan = plan_full_sentences(each, key_of(9), key_of(10), 15)
        examples = build_examples(each.input_ids, plan, rules())
        rows.append([row_of(examples, number) for number in range(len(plan.keys))])
    assert rows[0] == rows[1]
    assert np.diff(plan_full_sentences(one, key_of(9), key_of(10), 15).offsets).max() > 1
