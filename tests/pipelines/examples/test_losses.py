"""Counts of what is lost between documents and rows, against slow counts in plain Python."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.preprocessing.token_documents import flat, random_corpus
from tests.support.statistics import statistics_with
from tokenizers import pre_tokenizers

from pipelines.contract.errors import InputError
from pipelines.contract.schemas import SPECIAL_TOKENS
from pipelines.examples.losses import losses_of
from pipelines.examples.planned_rows import TokenizedDocuments
from pipelines.examples.planning import plan_examples
from pipelines.examples.warnings import mixture_warnings, refusal_of, warnings_of
from pipelines.settings.examples import ExamplesConfig
from pipelines.settings.vocabulary import VocabularyConfig
from pipelines.statistics.preprocessing import (
    ExamplesStatistics,
    ExamplesText,
    LengthStatistics,
    SourceStatistics,
    SplitRows,
)
from pipelines.vocabularies.making import Training
from pipelines.wordpiece.reference_tokenizer import build_normalizer, build_tokenizer
from pipelines.wordpiece.statistics import statistics_of
from pipelines.wordpiece.token_counts import TokenCounts
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.tokenizer_settings import TokenizerSettings
from pipelines.wordpiece.trainer import train
from pipelines.wordpiece.word_counts import count_words, marks_stripped, merge_counts

VOCABULARY = [*SPECIAL_TOKENS, *"abcdef", "##a", "##b", "##cd", "\u4e2d", "\u0e01", "\u00e9", "e\u0301", ",", "."]
SENTENCE = st.text(
    st.sampled_from([*"abcdefzZ  ,.\u00e9\u4e2d\u56fd\u0e01\u0e34\u0301\u1ebf\u304c\ud55c\u0915\u093f\u094d\u00a0\t"]),
    max_size=30,
) | st.text(max_size=12)
TEXTS = st.lists(SENTENCE.map(lambda text: text.encode("utf-8", "ignore").decode()), max_size=6)


def slow_counts(texts: list[str], lowercase: bool, strip_accents: bool | None) -> TokenCounts:
    """Word by word, from the pre-tokeniser on the complete text."""
    judge = build_tokenizer(VOCABULARY, lowercase, strip_accents)
    judge.encode_special_tokens = True
    total = Counter(dict.fromkeys(TokenCounts._fields, 0))
    for text in texts:
        encoding = judge.encode(text, add_special_tokens=False)
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            total["tokens"] += 1
            total["words"] += not VOCABULARY[index].startswith("##")
            total["unk"] += index == 1
            total["unk_characters"] += (end - start) * (index == 1)
    return TokenCounts(**total)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True)
@given(texts=TEXTS, lowercase=st.booleans(), strip_accents=st.sampled_from([None, True, False]))
def test_token_counts_equal_slow_ones(texts: list[str], lowercase: bool, strip_accents: bool | None) -> None:
    tokenizer = WordPieceTokenizer(VOCABULARY, lowercase, strip_accents)
    array = pa.array(texts, pa.string())
    expected = slow_counts(texts, lowercase, strip_accents)
    for _ in range(2):  # with an empty table, and with all chunks known
        tokenized, counts = tokenizer.tokenize_and_count(array)
        assert counts._replace(characters=0) == expected
        assert len(tokenized.input_ids) == counts.tokens
    assert counts.characters >= counts.unk_characters
    occurrences = np.arange(len(texts), dtype=np.int64)
    repeated = pa.array([text for number, text in enumerate(texts) for _ in range(number)], pa.string())
    assert tokenizer.count(array, occurrences) == tokenizer.tokenize_and_count(repeated)[1]


def test_characters_are_those_of_words() -> None:
    tokenizer = WordPieceTokenizer(VOCABULARY, lowercase=True)
    counts = tokenizer.tokenize_and_count(pa.array(["abz  a,b \u4e2d\u56fd " + "a" * 101]))[1]
    assert counts == TokenCounts(words=7, tokens=7, unk=3, characters=109, unk_characters=105)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True)
@given(texts=TEXTS, lowercase=st.booleans(), strip_accents=st.sampled_from([None, True, False]))
def test_marks_stripped_equal_a_count_of_the_decomposed_text(
    texts: list[str], lowercase: bool, strip_accents: bool | None
) -> None:
    strips = lowercase if strip_accents is None else strip_accents
    marks = sum(
        unicodedata.category(part) == "Mn"
        for text in texts
        for character in text
        for part in unicodedata.normalize("NFD", character)
    )
    tables = [count_words(pa.array([text], pa.string()), lowercase, strip_accents) for text in texts]
    assert marks_stripped(merge_counts(tables)) == (marks if strips else 0)


WORDS = st.lists(st.text("abcdefgh\u4e2d\u56fd", min_size=1, max_size=7), min_size=1, max_size=40)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(texts=WORDS, alphabet_size=st.integers(1, 10))
def test_vocabulary_statistics_equal_slow_ones(texts: list[str], alphabet_size: int) -> None:
    words = count_words(pa.array(texts), True, None)
    distinct, counts = words["word"].combine_chunks(), words["count"].to_numpy()
    config = VocabularyConfig(alphabet_size=alphabet_size)
    tokens = train(distinct, counts, _possible_size(distinct, counts, alphabet_size), 2, alphabet_size)
    facts = statistics_of(words, 0, tokens, TokenizerSettings(True), Training(config).unk_remedy)
    judge, normalizer = build_tokenizer(tokens, True, None), build_normalizer(True, None)
    pieces = unk = lost = total = number = 0
    for text in texts:
        for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(text)):
            ids = judge.encode(word, add_special_tokens=False).ids
            number, total, pieces = number + 1, total + len(word), pieces + len(ids)
            if ids == [1]:
                unk, lost = unk + 1, lost + len(word)
    assert (facts.words, facts.tokens, facts.unk, facts.characters) == (number, pieces, unk, total)
    assert facts.unk_share == round(unk / pieces, 6)
    assert facts.unk_characters_share == round(lost / total, 6)
    assert facts.pieces_per_word == round(pieces / number, 6)
    assert bool(facts.warnings) == (unk / pieces > 0.01)


def _possible_size(words: pa.Array, counts: Any, alphabet_size: int) -> int:
    """A vocabulary size that these words allow."""
    for size in range(5, 200):
        try:
            train(words, counts, size, 2, alphabet_size)
        except InputError:
            continue
        return size
    raise AssertionError


def test_a_size_that_cannot_be_says_what_becomes_unk() -> None:
    words = pa.array([chr(0x4E00 + number) for number in range(300)])
    counts = np.arange(300, 0, -1)
    with pytest.raises(
        InputError, match=r"only \d+ entries .* raise vocabulary\.alphabet_size = 100 first \(100 of 300"
    ):
        train(words, counts, 30_000, 2, 100)
    with pytest.raises(
        InputError, match=r"lower vocabulary\.alphabet_size, which makes more words \[UNK\]: 100 of 300"
    ):
        train(words, counts, 60, 2, 100)
    with pytest.raises(InputError, match="hold no word"):
        train(pa.array([], pa.string()), np.array([], np.int64), 100)


def slow_losses(documents: TokenizedDocuments, sources: list[int], rows: Any, passes: int, length: int) -> Counter[str]:
    """Token by token: which of them are in a row that follows the text."""
    tokens = len(documents.input_ids)
    document_of = np.repeat(
        np.arange(len(sources)), np.diff(documents.sentence_offsets[documents.document_offsets])
    ).tolist()
    held: Counter[int] = Counter()
    same = 0
    for row in range(len(rows.keys)):
        pieces = rows.pieces[rows.offsets[row] : rows.offsets[row + 1]].tolist()
        if rows.has_segment_b and rows.next_sentence_label[row]:
            (start, _), (other, _) = pieces
            same += sources[document_of[start]] == sources[document_of[other]]
            pieces = pieces[:1]
        for first, last in pieces:
            held.update(range(first, last))
    assert max(held.values(), default=0) <= passes
    sentences = np.diff(documents.sentence_offsets).tolist()
    room = length - (3 if rows.has_segment_b else 2)
    return Counter(
        sentences=len(sentences),
        long_sentences=sum(size > room for size in sentences),
        tokens_to_place=passes * tokens,
        tokens_cut=passes * tokens - sum(held.values()),
        same_document_random_next=same,
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=8), min_size=1, max_size=6),
    next_sentence=st.booleans(),
    passes=st.integers(1, 3),
    length=st.integers(8, 40),
    pieces=st.integers(1, 6),
)
def test_losses_equal_slow_ones(
    shape: list[list[int]], next_sentence: bool, passes: int, length: int, pieces: int
) -> None:
    documents = flat([[[7] * size for size in sentences] for sentences in shape])
    sources = [number // pieces for number in range(len(shape))]
    config = ExamplesConfig.model_validate({"passes": passes, "next_sentence": next_sentence})
    rows = plan_examples(documents, config, length)
    found = losses_of(documents, np.array(sources), rows, passes, length)
    assert found == slow_losses(documents, sources, rows, passes, length)
    if not next_sentence:
        assert found["tokens_cut"] == 0


def test_pieces_of_one_book_are_seen_among_random_next_sentences() -> None:
    documents = random_corpus(8, sentences=40)
    config = ExamplesConfig(passes=40)
    rows = plan_examples(documents, config, 64)
    apart, together = (losses_of(documents, np.arange(8) // size, rows, 40, 64) for size in (1, 4))
    assert apart["same_document_random_next"] == 0
    share = together["same_document_random_next"] / int(rows.next_sentence_label.sum())
    # Three of the seven other documents are of the same book.
    assert abs(share - 3 / 7) < 0.05


def statistics(train: tuple[int, int] = (100, 50), heldout: int = 5, **changes: Any) -> ExamplesStatistics:
    """Statistics of good examples, except for `changes`; train: rows, and how many of them are random."""
    text = {
        "train_documents": 90,
        "heldout_documents": 30,
        "tokens": 1_000,
        "unk_share": 0.001,
        "unk_characters_share": 0.001,
        "pieces_per_word": 1.3,
    }
    facts = {"tokens_cut_share": 0.02, "sentences": 400, "long_sentences": 3}
    for name, value in changes.items():
        (text if name in text else facts)[name] = value
    splits = {
        "train": statistics_with(SplitRows, examples=train[0], random_next=train[1]),
        "heldout": statistics_with(SplitRows, examples=heldout),
    }
    lengths = {"128": statistics_with(LengthStatistics, splits=splits, **facts)}
    return statistics_with(ExamplesStatistics, lengths=lengths, text=statistics_with(ExamplesText, **text))


@pytest.mark.parametrize(
    ("changes", "settings", "line"),
    [
        ({}, {}, None),
        ({"unk_share": 0.02}, {}, r"\[UNK\] is 2\.0% of all tokens .* raise vocabulary\.alphabet_size"),
        ({"pieces_per_word": 1.0}, {"masking": "whole_word"}, r"whole-word masking has no effect: .* 1\.00 pieces"),
        (
            {"pieces_per_word": 1.0},
            {"masking": "dynamic_whole_word"},
            r"no effect: .* examples.masking = 'dynamic' gives",
        ),
        ({"pieces_per_word": 1.0}, {}, None),
        ({"heldout_documents": 0}, {}, r"no document is held out: .* word-order .* documents\.heldout_share"),
        ({"heldout_documents": 3}, {}, r"only 3 documents are held out: .* word-order"),
        ({"heldout": 0}, {}, "length 128: no held-out row"),
        ({"tokens_cut_share": 0.73}, {}, r"length 128: 73\.0% of the tokens are cut off .* 3 of 400 sentences"),
        ({"train": (100, 0)}, {}, r"length 128: 0\.0% of the next .* accuracy is 1\.000 .* documents\.num_shards"),
        ({"train": (100, 100)}, {}, r"length 128: 100\.0% of the next .* accuracy is 1\.000 .* raise max_seq_length"),
        ({"train": (100, 0)}, {"next_sentence": False}, None),
        ({"same_document_random_next_share": 0.019}, {}, r"1\.9% of the random next sentences come from another piece"),
    ],
)
def test_each_loss_is_warned_of_with_its_setting(
    changes: dict[str, Any], settings: dict[str, Any], line: str | None
) -> None:
    facts = statistics(**changes)
    assert refusal_of(facts) is None
    found = warnings_of(facts.lengths, facts.text, ExamplesConfig.model_validate(settings))
    assert len(found) == (line is not None)
    if line is not None:
        assert re.search(line, found[0])


def test_examples_of_no_use_are_refused() -> None:
    line = refusal_of(statistics(train=(0, 0)))
    assert line is not None
    assert "no training row of length 128 came of 90 training documents with 1,000 tokens" in line
    line = refusal_of(statistics(unk_share=0.97))
    assert line is not None
    assert "[UNK] is 97.0% of all tokens" in line


def test_sources_that_are_read_often_or_miss_their_share_are_warned_of() -> None:
    facts = {"train_documents": 9, "train_tokens": 900_000, "tokens_read": 1, "asked_share": 0.3}
    sources = {
        "novels": SourceStatistics(share=0.32, reads_per_pass=0.5, **facts),
        "wiki": SourceStatistics(share=0.305, reads_per_pass=1.0, **facts),
        "law": SourceStatistics(share=0.3, reads_per_pass=17.2, **facts),
    }
    missed, often = mixture_warnings(sources)
    assert missed.startswith(
        "the source 'novels' gives 32.0% of the tokens instead of 30.0%: its documents, of 100,000"
    )
    assert often.startswith("each document of the source 'law' is read 17.2 times a pass")
