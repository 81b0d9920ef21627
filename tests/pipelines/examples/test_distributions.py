"""Chi-square tests of every random choice, on a million examples each.

The draws are keyed, so a test gives the same p-value each time: it fails when the code changes, never by chance.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from tests.support.preprocessing.token_documents import (
    CLS,
    MASK,
    SEP,
    VOCABULARY_SIZE,
    random_corpus,
    regular_corpus,
    rules,
)

from pipelines.examples.full_sentences import plan_full_sentences
from pipelines.examples.masking import MaskedExamples, build_examples
from pipelines.examples.planned_rows import TokenizedDocuments
from pipelines.examples.planning import plan_examples
from pipelines.examples.sentence_pairs import (
    A_END,
    A_START,
    B_END,
    B_START,
    DOCUMENT,
    IS_RANDOM_NEXT,
    NUMBER,
    plan_pairs,
)
from pipelines.examples.statistics import counts_of, flat_positions
from pipelines.seeding import key_of
from pipelines.settings.examples import ExampleLengthConfig, ExamplesConfig

MILLION = 1_000_000
LEAST_P = 1e-4
LENGTH = 32
MOST_TOKENS = LENGTH - 3


@pytest.fixture(scope="module")
def million() -> MaskedExamples:
    """A million rows of at most 32 tokens, and five million masked tokens."""
    config = ExamplesConfig(
        seed=7, passes=16, lengths=(ExampleLengthConfig(max_seq_length=LENGTH, max_predictions_per_seq=20),)
    )
    documents = random_corpus(2_000)
    rows = plan_examples(documents, config, LENGTH)
    assert len(rows.keys) > MILLION
    return build_examples(documents.input_ids, rows, rules())


def test_eighty_ten_ten(million: MaskedExamples) -> None:
    counts = counts_of(million, MASK, 1)
    assert counts["examples"] > MILLION
    # A random token equals the original, and so counts as kept, once in the vocabulary's size; [MASK] can be drawn too.
    random_hits = 0.1 / VOCABULARY_SIZE
    expected = np.array([0.8 + random_hits, 0.1 + random_hits, 0.1 - 2 * random_hits]) * counts["masked"]
    observed = [counts["masked_as_mask"], counts["masked_as_kept"], counts["masked_as_random"]]
    assert stats.chisquare(observed, expected).pvalue > LEAST_P


def test_random_tokens_come_from_the_whole_vocabulary(million: MaskedExamples) -> None:
    replaced = million.input_ids[flat_positions(million)]
    random = replaced[(replaced != million.masked_lm_ids) & (replaced != MASK)]
    counts = np.bincount(random, minlength=VOCABULARY_SIZE)
    # The special tokens are drawn like any other, but are never themselves the original.
    assert stats.chisquare(np.delete(counts, [0, 1, 2, 3, 4])).pvalue > LEAST_P
    assert stats.chisquare(counts[:4]).pvalue > LEAST_P


def test_masked_positions_are_uniform_within_a_row(million: MaskedExamples) -> None:
    per_row = np.diff(million.masked_lm_offsets)
    lengths, separators = np.diff(million.offsets), million.segment_b_start.astype(np.int64) - 1
    positions = million.masked_lm_positions.astype(np.int64)
    # Fold away [SEP] between the segments: count a position's rank among the candidates.
    ranks = positions - (positions > np.repeat(separators, per_row))
    seen = np.bincount(ranks[np.repeat(lengths == LENGTH, per_row)], minlength=LENGTH)
    assert seen[0] == 0
    assert seen[MOST_TOKENS + 1 :].sum() == 0
    # Positions of a row are drawn without replacement, so the statistic is smaller by this factor.
    masked_share = per_row[lengths == LENGTH][0] / MOST_TOKENS
    statistic = stats.chisquare(seen[1 : MOST_TOKENS + 1]).statistic / (1 - masked_share)
    assert LEAST_P < stats.chi2.sf(statistic, MOST_TOKENS - 1) < 1 - LEAST_P


def test_special_tokens_are_never_masked(million: MaskedExamples) -> None:
    assert million.masked_lm_ids.min() >= 5
    separators = million.segment_b_start.astype(np.int64) - 1 + million.offsets[:-1]
    assert (million.input_ids[separators] == SEP).all()
    assert (million.input_ids[million.offsets[:-1]] == CLS).all()
    assert (million.input_ids[million.offsets[1:] - 1] == SEP).all()


def plans(
    documents: TokenizedDocuments, passes: int, short_seq_prob: float, max_seq_length: int = LENGTH
) -> NDArray[np.int64]:
    return np.concatenate(
        [plan_pairs(documents, key_of(3, number), max_seq_length, short_seq_prob) for number in range(passes)]
    )


TOKENS, SENTENCES, CHUNK = 3, 25, 10
"""Sentences of 3 tokens: ten make a chunk of 30, at least the 29 that fit. Truncation takes two tokens at most, so the
sentences of A follow from the remaining range."""


@pytest.fixture(scope="module")
def regular_pairs() -> NDArray[np.int64]:
    """Pairs with further columns: sentences of the chunk, sentences of A, B's document, B's first sentence in it."""
    pairs = plans(regular_corpus(10_000, SENTENCES, TOKENS), 34, 0.0)
    assert len(pairs) > MILLION
    first, last = pairs[:, A_START] // TOKENS, -(-pairs[:, A_END] // TOKENS)
    left = (pairs[:, DOCUMENT] + 1) * SENTENCES - first
    of_b, start_of_b = np.divmod(pairs[:, B_START] // TOKENS, SENTENCES)
    more = [np.minimum(left, CHUNK), last - first, of_b, start_of_b]
    return np.concatenate([pairs, np.stack(more, axis=1)], axis=1)


def test_half_of_the_next_sentences_are_random_whatever_the_chunk(regular_pairs: NDArray[np.int64]) -> None:
    sizes, is_random = regular_pairs[:, 7], regular_pairs[:, IS_RANDOM_NEXT]
    assert is_random[sizes == 1].all()
    table = np.array([np.bincount(is_random[sizes == size], minlength=2) for size in range(2, CHUNK + 1)])
    assert table.sum() > 0.9 * MILLION
    statistic = sum(stats.chisquare(row).statistic for row in table)
    assert stats.chi2.sf(statistic, len(table)) > LEAST_P


def test_the_split_of_a_chunk_is_uniform(regular_pairs: NDArray[np.int64]) -> None:
    for size in range(3, CHUNK + 1):
        splits = np.bincount(regular_pairs[regular_pairs[:, 7] == size, 8], minlength=size + 1)
        assert splits[0] == 0
        assert splits[size:].sum() == 0
        assert stats.chisquare(splits[1:size]).pvalue > LEAST_P


def test_the_random_next_is_any_sentence_of_any_other_document(regular_pairs: NDArray[np.int64]) -> None:
    random = regular_pairs[regular_pairs[:, IS_RANDOM_NEXT] == 1]
    assert (random[:, DOCUMENT] != random[:, 9]).all()
    assert stats.chisquare(np.bincount(random[:, 9], minlength=10_000)).pvalue > LEAST_P
    # A B whose first tokens were cut off may seem to begin one sentence later; where it is longer than A this happens.
    uncut = random[(random[:, B_START] % TOKENS == 0) & (random[:, A_END] - random[:, A_START] > MOST_TOKENS // 2 + 1)]
    assert stats.chisquare(np.bincount(uncut[:, 10], minlength=SENTENCES)).pvalue > LEAST_P


def test_short_targets_are_uniform_and_drawn_for_the_stated_share() -> None:
    documents = regular_corpus(100_000, 30, 1)
    for prob, passes in ((1.0, 3), (0.1, 6)):
        pairs = plans(documents, passes, prob)
        # Sentences of one token: a document's first pair with its true continuation is exactly as long as the target.
        firsts = pairs[(pairs[:, NUMBER] == 0) & (pairs[:, IS_RANDOM_NEXT] == 0)]
        targets = firsts[:, A_END] - firsts[:, A_START] + firsts[:, B_END] - firsts[:, B_START]
        seen = np.bincount(targets, minlength=MOST_TOKENS + 1)
        assert seen[:2].sum() == 0
        shares = np.full(MOST_TOKENS - 1, prob / (MOST_TOKENS - 1))
        shares[-1] += 1 - prob
        assert len(pairs) > MILLION
        assert stats.chisquare(seen[2:], shares * len(firsts)).pvalue > LEAST_P


def test_full_sentences_take_the_documents_in_any_order() -> None:
    documents = regular_corpus(4, 2, 3)
    orders: dict[tuple[int, ...], int] = {}
    for number in range(24_000):
        plan = plan_full_sentences(documents, key_of(11, number), key_of(12, number), 8)
        order = tuple((plan.pieces[:, 0] // 6).tolist())
        orders[order] = orders.get(order, 0) + 1
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > LEAST_P


def test_random_documents_are_drawn_as_often_as_they_are_read_and_never_from_another_read_of_the_same() -> None:
    sentences, tokens = 6, 4
    documents, times = regular_corpus(4, sentences, tokens), np.array([1, 2, 3, 6])
    drawn, pairs_of_read = np.zeros((4, 4), np.int64), np.zeros((6, 4), np.int64)
    for number in range(6):
        for seed in range(400):
            pairs = plan_pairs(documents, key_of(seed, number), 16, 0.0, times, number)
            pairs_of_read[number] += np.bincount(pairs[:, DOCUMENT], minlength=4) > 0
            is_random = pairs[:, IS_RANDOM_NEXT] == 1
            others = pairs[is_random, B_START] // (sentences * tokens)
            np.add.at(drawn, (pairs[is_random, DOCUMENT], others), 1)
    # Read n cuts the documents that are read more than n times.
    assert (pairs_of_read == 400 * (times > np.arange(6)[:, None])).all()
    assert drawn.diagonal().sum() == 0
    for document in range(4):
        is_other = np.arange(4) != document
        expected = times[is_other] / times[is_other].sum() * drawn[document].sum()
        assert stats.chisquare(drawn[document][is_other], expected).pvalue > 1e-4
