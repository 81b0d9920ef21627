"""Rows of token ids: each word labelled once at its first sub-token, nothing lost, context as much as there is."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer

from training.finetuning.text import TextEncoder
from training.tagging.encoding import TaggingRows, encode_words
from training.tagging.reading import TaggedSentence, TaggedText

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *(f"##{c}" for c in "abcdefgh")]
UNK, CLS, SEP = 1, 2, 3
CONTROL = "\u0007"
TOKENIZER = BertWordPieceTokenizer({token: index for index, token in enumerate(VOCABULARY)}, lowercase=True)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    directory = tmp_path_factory.mktemp("vocabulary")
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY))
    return TextEncoder(str(directory))


def text_of(documents: list[list[list[str]]]) -> TaggedText:
    sentences = [
        TaggedSentence(tuple(words), ("O",) * len(words), number)
        for number, document in enumerate(documents, start=1)
        for words in document
    ]
    return TaggedText("file", tuple(sentences), "iob2", 0, True, " ")


def sub_tokens(word: str) -> list[int]:
    """By the library's tokenizer, a word at a time; what it drops is one unknown token, and "[SEP]" is text."""
    encoding = TOKENIZER.encode(word.replace("[", " [ "), add_special_tokens=False)
    return list(encoding.ids) or [UNK]


def slow_rows(documents: list[list[list[str]]], max_seq_length: int) -> list[tuple[list[int], list[int]]]:
    """Input ids and labelled positions of each row with document context, a word at a time."""
    room = max_seq_length - 2
    rows = []
    for document in documents:
        pieces = [sub_tokens(word)[:room] for sentence in document for word in sentence]
        sizes = [len(piece) for piece in pieces]
        end = 0
        for sentence in document:
            start, end = end, end + len(sentence)
            runs = [[*range(start, end)]]
            if sum(sizes[start:end]) > room:
                runs = [[]]
                for word in range(start, end):
                    if runs[-1] and sum(sizes[other] for other in runs[-1]) + sizes[word] > room // 2:
                        runs.append([])
                    runs[-1].append(word)
            for run in runs:
                spare = room - sum(sizes[word] for word in run)
                right_all = sum(sizes[run[-1] + 1 :])
                left_budget = spare - min(right_all, spare - spare // 2)
                left = run[0]
                while left and left_budget >= sizes[left - 1]:
                    left -= 1
                    left_budget -= sizes[left]
                right_budget = spare - sum(sizes[left : run[0]])
                right = run[-1] + 1
                while right < len(sizes) and right_budget >= sizes[right]:
                    right_budget -= sizes[right]
                    right += 1
                ids = [token for piece in pieces[left:right] for token in piece]
                positions = [1 + sum(sizes[left:word]) for word in run]
                rows.append(([CLS, *ids, SEP], positions))
    return rows


odd_words = st.sampled_from(["z", CONTROL, "!", "[SEP]", "a b", "abcdefgh" * 4])
words = st.text("abcdefgh", min_size=1, max_size=6) | odd_words
texts = st.lists(st.lists(st.lists(words, min_size=1, max_size=12), min_size=1, max_size=4), min_size=1, max_size=3)


def shown(rows: TaggingRows) -> list[tuple[list[int], list[int]]]:
    pairs = zip(rows.text.input_ids, rows.word_positions, strict=True)
    return [(ids.tolist(), positions.tolist()) for ids, positions in pairs]


@settings(deadline=None, derandomize=True)
@given(documents=texts, max_seq_length=st.integers(8, 40))
def test_rows_with_document_context_equal_the_slow_ones(
    encoder: TextEncoder, documents: list[list[list[str]]], max_seq_length: int
) -> None:
    rows = encode_words(encoder, text_of(documents), max_seq_length, document_context=True)
    assert shown(rows) == slow_rows(documents, max_seq_length)


@settings(deadline=None, derandomize=True)
@given(documents=texts, max_seq_length=st.integers(8, 40))
def test_without_it_each_sentence_is_a_document(
    encoder: TextEncoder, documents: list[list[list[str]]], max_seq_length: int
) -> None:
    rows = encode_words(encoder, text_of(documents), max_seq_length, document_context=False)
    alone = [[sentence] for document in documents for sentence in document]
    assert shown(rows) == slow_rows(alone, max_seq_length)


@settings(deadline=None, derandomize=True)
@given(documents=texts, max_seq_length=st.integers(8, 40), with_context=st.booleans())
def test_each_word_is_labelled_once_at_its_first_sub_token(
    encoder: TextEncoder, documents: list[list[list[str]]], max_seq_length: int, with_context: bool
) -> None:
    rows = encode_words(encoder, text_of(documents), max_seq_length, with_context)
    every_word = [word for document in documents for sentence in document for word in sentence]
    numbers = np.random.default_rng(0).permutation(len(rows.word_positions))
    labelled = rows.words(numbers)
    assert sorted(labelled.tolist()) == list(range(len(every_word)))
    assert rows.num_words(numbers) == len(every_word)
    first_tokens = np.concatenate([[0], np.cumsum(rows.text.lengths[numbers])])[:-1]
    packed = np.concatenate([rows.text.input_ids[row] for row in numbers])
    found = packed[rows.positions(numbers, first_tokens)]
    assert found.tolist() == [sub_tokens(every_word[word])[0] for word in labelled]
    assert rows.text.lengths.max() <= max_seq_length
    assert rows.text.segment_b_starts.tolist() == rows.text.lengths.tolist()


def test_a_short_sentence_is_one_row_of_its_own(encoder: TextEncoder) -> None:
    rows = encode_words(encoder, text_of([[["ab", CONTROL, "c!"]]]), 16, document_context=False)
    ids = [VOCABULARY.index(token) for token in ("[CLS]", "a", "##b", "[UNK]", "c", "[SEP]")]
    ids.insert(5, UNK)  # "!" is not in this vocabulary
    assert shown(rows) == [(ids, [1, 3, 4])]


def test_no_word_of_a_long_sentence_lacks_context(encoder: TextEncoder) -> None:
    rows = encode_words(encoder, text_of([[["a"] * 1_000]]), 34, document_context=False)
    for positions, length in zip(rows.word_positions[1:-1], rows.text.lengths[1:-1], strict=True):
        assert length == 34
        assert positions[0] - 1 >= 8
        assert length - 2 - positions[-1] >= 8


def test_context_stays_within_the_document(encoder: TextEncoder) -> None:
    rows = encode_words(encoder, text_of([[["a", "b"], ["c"]], [["d"]]]), 16, document_context=True)
    a, b, c, d = (VOCABULARY.index(letter) for letter in "abcd")
    assert shown(rows) == [([CLS, a, b, c, SEP], [1, 2]), ([CLS, a, b, c, SEP], [3]), ([CLS, d, SEP], [1])]


def test_a_vocabulary_without_lower_casing_is_used_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    rows = encode_words(TextEncoder(str(tmp_path)), text_of([[["a", "A"]]]), 16, document_context=False)
    assert shown(rows) == [([CLS, VOCABULARY.index("a"), UNK, SEP], [1, 2])]
