"""Next-sentence pairs and masks against plain-list versions of the released code, and against their own statistics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import Pair, Stream, derive_key, masked, pairs_of_document
from scipy import stats

from pipelines import seeding
from pipelines.examples import examples_of, statistics_of
from pipelines.masking import MaskedExamples, MaskingRules, build_examples, num_predictions
from pipelines.seeding import key_of
from pipelines.sentence_pairs import TokenizedDocuments, plan_pairs

Documents = list[list[list[int]]]
CLS, SEP, MASK = 2, 3, 4
VOCABULARY_SIZE = 60
CONTINUATIONS = set(range(40, 60))


def flat(documents: Documents) -> TokenizedDocuments:
    sentences = [sentence for document in documents for sentence in document]
    return TokenizedDocuments(
        input_ids=np.array([token for sentence in sentences for token in sentence], np.int32),
        sentence_offsets=np.cumsum([0, *map(len, sentences)]),
        document_offsets=np.cumsum([0, *map(len, documents)]),
        document_keys=np.arange(1000, 1000 + len(documents), dtype=np.uint64),
    )


def rules(whole_word: bool = False, prob: float = 0.15, most: int = 20) -> MaskingRules:
    is_continuation = np.array([number in CONTINUATIONS for number in range(VOCABULARY_SIZE)])
    return MaskingRules(prob, most, whole_word, CLS, SEP, MASK, is_continuation)


def segments(documents: TokenizedDocuments, plan: np.ndarray) -> list[Pair]:
    ids = documents.input_ids
    return [(ids[row[0] : row[1]].tolist(), ids[row[2] : row[3]].tolist(), int(row[4])) for row in plan]


SENTENCES = st.lists(st.integers(5, VOCABULARY_SIZE - 1), min_size=1, max_size=12)
CORPORA = st.lists(st.lists(SENTENCES, min_size=1, max_size=9), min_size=2, max_size=5)


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


@settings(max_examples=300, deadline=None)
@given(documents=CORPORA, seed=st.integers(0, 2**32), whole_word=st.booleans(), most=st.integers(1, 9))
def test_masks_equal_the_reference(documents: Documents, seed: int, whole_word: bool, most: int) -> None:
    tokenized, key = flat(documents), key_of(seed, 2)
    plan = plan_pairs(tokenized, key_of(seed, 1), 30, 0.1)
    examples = build_examples(tokenized, plan, np.full(len(plan), key, np.uint64), rules(whole_word, 0.3, most))
    special = {"cls": CLS, "sep": SEP, "mask": MASK}
    for number, (pair, row) in enumerate(zip(segments(tokenized, plan), plan.tolist(), strict=True)):
        stream = Stream(derive_key(derive_key(int(key), int(tokenized.document_keys[row[5]])), row[6]))
        ids, positions, labels = masked(pair, stream, 0.3, most, whole_word, special, CONTINUATIONS, VOCABULARY_SIZE)
        assert row_of(examples, number) == (ids, positions, labels)
        assert examples.segment_b_start[number] == len(pair[0]) + 2
        assert examples.next_sentence_label[number] == pair[2]


def row_of(examples: MaskedExamples, number: int) -> tuple[list[int], list[int], list[int]]:
    start, stop = examples.offsets[number : number + 2]
    first, last = examples.masked_lm_offsets[number : number + 2]
    return (
        examples.input_ids[start:stop].tolist(),
        examples.masked_lm_positions[first:last].tolist(),
        examples.masked_lm_ids[first:last].tolist(),
    )


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


def big_corpus(num_documents: int = 400) -> TokenizedDocuments:
    generator = np.random.Generator(np.random.Philox(key=5))
    return flat(
        [
            [generator.integers(5, VOCABULARY_SIZE, size=generator.integers(3, 25)).tolist() for _ in range(60)]
            for _ in range(num_documents)
        ]
    )


@pytest.fixture(scope="module")
def million() -> MaskedExamples:
    """Close to a million masked tokens."""
    return examples_of(big_corpus(), 7, 18, 128, 0.1, rules())


def test_shares_of_replacements_and_labels(million: MaskedExamples) -> None:
    counts = statistics_of(million, MASK)
    assert counts["masked"] > 900_000
    # A random token equals the original, and so counts as kept, once in the vocabulary's size; [MASK] can be drawn too.
    random_hits = 0.1 / VOCABULARY_SIZE
    expected = np.array([0.8 + random_hits, 0.1 + random_hits, 0.1 - 2 * random_hits]) * counts["masked"]
    observed = [counts["masked_as_mask"], counts["masked_as_kept"], counts["masked_as_random"]]
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_masked_positions_are_uniform_within_a_row(million: MaskedExamples) -> None:
    lengths = np.diff(million.offsets)
    rows = np.flatnonzero(lengths == 128)
    seen = np.zeros(128, np.int64)
    for row in rows[:20_000]:
        first, last = million.masked_lm_offsets[row : row + 2]
        positions = million.masked_lm_positions[first:last]
        assert len(positions) == 19
        # Fold away [SEP] between the segments: count a position's rank among the candidates.
        separator = million.segment_b_start[row] - 1
        seen[positions - (positions > separator)] += 1
    assert seen[0] == 0
    assert stats.chisquare(seen[1:126]).pvalue > 1e-4


def test_random_tokens_come_from_the_whole_vocabulary(million: MaskedExamples) -> None:
    per_row = np.diff(million.masked_lm_offsets)
    places = np.repeat(million.offsets[:-1], per_row) + million.masked_lm_positions
    replaced = million.input_ids[places]
    random = replaced[(replaced != million.masked_lm_ids) & (replaced != MASK)]
    counts = np.bincount(random, minlength=VOCABULARY_SIZE)
    assert (np.delete(counts, MASK) > 0).all()
    # [PAD], [UNK], [CLS] and [SEP] are drawn like any other, but are never themselves the original.
    assert stats.chisquare(np.delete(counts, [0, 1, 2, 3, 4])).pvalue > 1e-4


def test_special_tokens_are_never_masked(million: MaskedExamples) -> None:
    assert million.masked_lm_ids.min() >= 5
    separators = million.segment_b_start.astype(np.int64) - 1 + million.offsets[:-1]
    assert (million.input_ids[separators] == SEP).all()
    assert (million.input_ids[million.offsets[:-1]] == CLS).all()
    assert (million.input_ids[million.offsets[1:] - 1] == SEP).all()


def test_half_of_the_next_sentences_are_random_and_a_tenth_of_the_documents_short() -> None:
    tokenized = big_corpus(3000)
    plan = plan_pairs(tokenized, key_of(11), 128, 0.1)
    share = plan[:, 4].mean()
    assert 0.5 < share < 0.58
    # Pairs of a document that drew the short length stay below it; the others come close to the full length.
    lengths = plan[:, 1] - plan[:, 0] + plan[:, 3] - plan[:, 2]
    longest = np.zeros(3000, np.int64)
    np.maximum.at(longest, plan[:, 5], lengths)
    assert 0.06 < (longest < 115).mean() < 0.14


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


def test_stream_equals_its_reference_and_is_uniform() -> None:
    stream = np.array([key_of(5, 6), 0], np.uint64)
    reference = Stream(derive_key(derive_mix(5), 6))
    assert [int(seeding.next_bits(stream)) for _ in range(5)] == [reference.bits() for _ in range(5)]
    draws = [seeding.next_below(stream, 50) for _ in range(100_000)]
    assert stats.chisquare(np.bincount(draws, minlength=50)).pvalue > 1e-4


def derive_mix(seed: int) -> int:
    return int(key_of(seed))
