"""The vectorised tokeniser against `transformers.BertTokenizerFast`, id by id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import BertTokenizerFast

from pipelines.wordpiece.reference_tokenizer import build_tokenizer
from pipelines.wordpiece.tokenizer import WordPieceTokenizer

PIECES = ["low", "est", "##er", "##est", "the", "new", "##wer", "mask", "un", "##known", "é", "İ", "##İ", "東", "京"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALL = [
    *SPECIAL,
    *(chr(code) for code in range(33, 127)),
    *("##" + chr(code) for code in range(33, 127)),
    *(piece for piece in PIECES),
]


def ids_of_transformers(
    vocabulary: list[str], texts: list[str], lowercase: bool, strip: bool | None
) -> list[list[int]]:
    tokenizer = BertTokenizerFast(
        vocab={token: index for index, token in enumerate(vocabulary)}, do_lower_case=lowercase, strip_accents=strip
    )
    tokenizer.backend_tokenizer.encode_special_tokens = True
    return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]


def ids_of_ours(tokenizer: WordPieceTokenizer, texts: list[str]) -> list[list[int]]:
    tokenized = tokenizer.tokenize(pa.array(texts, pa.string()))
    parts = np.split(tokenized.input_ids, tokenized.offsets[1:-1]) if texts else []
    return [part.tolist() for part in parts]


CASES = [(True, None), (False, None), (True, False), (False, True)]


@pytest.mark.parametrize(("lowercase", "strip"), CASES)
@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=40), min_size=1, max_size=8))
def test_any_unicode(lowercase: bool, strip: bool | None, texts: list[str]) -> None:
    ours = WordPieceTokenizer(SMALL, lowercase, strip)
    assert ids_of_ours(ours, texts) == ids_of_transformers(SMALL, texts, lowercase, strip)
    assert ids_of_ours(ours, texts[::-1]) == ids_of_transformers(SMALL, texts[::-1], lowercase, strip)


TRICKY_PIECES = ["low", "LOWER", "lowest", "[MASK]", "[SEP]", "##er", "un-known", "\u6771\u4eac", "e\u0301", "=\u0338"]
TRICKY_PIECES += ["\u0301", "\u0130", "\ufb01", "\u200d", "\ufffd", "\u01c5", "\u03a3"]
TRICKY_SPACES = [" ", "\t", "\n", "\x0b", "\x0c", "\x00", "\x7f", "\u00a0", "\u2028", "\u3000"]
TRICKY = st.sampled_from([*TRICKY_PIECES, *TRICKY_SPACES])


@pytest.mark.parametrize(("lowercase", "strip"), CASES)
@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.lists(TRICKY, max_size=12).map("".join), min_size=1, max_size=6))
def test_tricky_neighbours(lowercase: bool, strip: bool | None, texts: list[str]) -> None:
    ours = WordPieceTokenizer(SMALL, lowercase, strip)
    assert ids_of_ours(ours, texts) == ids_of_transformers(SMALL, texts, lowercase, strip)


def test_special_tokens_in_text_are_text() -> None:
    ours = ids_of_ours(WordPieceTokenizer(SMALL, lowercase=True), ["[MASK]"])
    assert ours == [[SMALL.index("["), SMALL.index("mask"), SMALL.index("]")]]


def test_words_of_more_than_a_hundred_characters_are_unknown() -> None:
    ours = ids_of_ours(WordPieceTokenizer(SMALL, lowercase=True), ["l" * 100, "l" * 101])
    assert len(ours[0]) == 100
    assert ours[1] == [SMALL.index("[UNK]")]


@pytest.mark.slow
def test_table_grows_and_is_renewed_without_changing_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"low{number} {number * 7919} est \u00e9{number % 977}low" for number in range(60_000)]
    expected = ids_of_transformers(SMALL, texts, True, None)
    monkeypatch.setattr("pipelines.wordpiece.chunk_table._MAX_CHUNKS", 50_000)
    ours = WordPieceTokenizer(SMALL, lowercase=True)
    for start in range(0, len(texts), 15_000):
        assert ids_of_ours(ours, texts[start : start + 15_000]) == expected[start : start + 15_000]


def test_sliced_and_empty_arrays() -> None:
    ours = WordPieceTokenizer(SMALL, lowercase=True)
    texts = pa.array(["low", "", "new low", "est"])
    sliced = ours.tokenize(texts.slice(1, 2))
    assert sliced.offsets.tolist() == [0, 0, 2]
    assert ours.tokenize(pa.array([], pa.string())).input_ids.tolist() == []


def test_words_of_every_length_at_every_place() -> None:
    letters = "lowestnewerthemask" * 3
    words = [letters[:length] for length in (1, 7, 8, 9, 15, 16, 17, 24, 33)]
    words += [word[:place] + "\u00e9" + word[place:] for word in words for place in (0, 7, 8, 15, len(word))]
    texts = [" " * before + word.upper() + after for word in words for before in (0, 3, 62, 63) for after in ("", "!x")]
    expected = ids_of_transformers(SMALL, texts, True, None)
    ours = WordPieceTokenizer(SMALL, lowercase=True)
    assert ids_of_ours(ours, texts) == expected
    for first in (0, 1, len(texts) // 2, len(texts) - 1):
        tokenized = ours.tokenize(pa.array(["low", *texts, "est"]).slice(1 + first, len(texts) - first))
        assert tokenized.input_ids.tolist() == [number for ids in expected[first:] for number in ids]


def test_unused_entries_are_never_produced() -> None:
    vocabulary = [SMALL[0], "[unused0]", *SMALL[1:], "[unused1]"]
    texts = ["[unused0] low[unused1]", "[ unused0 ]", "[PAD][unused1]"]
    ours = ids_of_ours(WordPieceTokenizer(vocabulary, lowercase=True), texts)
    assert ours == ids_of_transformers(vocabulary, texts, True, None)
    assert not {number for ids in ours for number in ids} & {0, 1, len(vocabulary) - 1}


@pytest.mark.slow
def test_one_very_long_text() -> None:
    text = " ".join(f"w{number}" for number in range(400_000))
    ours = WordPieceTokenizer(SMALL, lowercase=True)
    assert ids_of_ours(ours, [text]) == ids_of_transformers(SMALL, [text], True, None)


def test_tokenizer_json_equals_transformers(tmp_path: Path) -> None:
    build_tokenizer(SMALL, True, None).save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs = BertTokenizerFast(vocab={token: index for index, token in enumerate(SMALL)}).backend_tokenizer
    for pair in [("Lower est", "new"), ("[MASK] low", "éa")]:
        assert ours.encode(*pair).ids == theirs.encode(*pair).ids
        assert ours.encode(*pair).type_ids == theirs.encode(*pair).type_ids


@pytest.mark.slow
@pytest.mark.parametrize("cased", [False, True])
def test_every_file_of_the_real_data(shared_data: Path, cased: bool) -> None:
    name = "bert-base-cased-vocab.txt" if cased else "bert-base-uncased-vocab.txt"
    vocabulary = (shared_data / "vocab" / name).read_text("utf-8").split("\n")[:-1]
    ours = WordPieceTokenizer(vocabulary, lowercase=not cased)
    texts = []
    for path in sorted(shared_data.rglob("*")):
        if path.is_file() and "novels100" not in path.parts:
            texts += path.read_bytes()[:40_000].decode("utf-8", "replace").splitlines()
    assert len(texts) > 30_000
    expected = ids_of_transformers(vocabulary, texts, not cased, None)
    assert ids_of_ours(ours, texts) == expected
