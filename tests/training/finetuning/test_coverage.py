"""How well a vocabulary fits the texts of a task, against a slow count and against the count of preprocessing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tokenizer_directories import TEXTS, WORDS

from pipelines.contract.schemas import UNK
from pipelines.results.coverage import fit_of
from pipelines.wordpiece.reference_tokenizer import build_text_tokenizer
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.word_counts import tokenizer_files
from training.finetuning.coverage import coverage_lines, coverage_of
from training.finetuning.text import TextEncoder
from training.settings.finetuning import FinetuningConfig


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=6), lowercase=st.booleans())
def test_counts_are_those_of_preprocessing_and_of_a_slow_count(texts: list[str], lowercase: bool) -> None:
    judge = build_text_tokenizer(WORDS, lowercase, None)
    found = coverage_of(judge, texts)
    _, counted = WordPieceTokenizer(WORDS, lowercase).tokenize_and_count(pa.array(texts, pa.string()))
    assert found == fit_of(**counted._asdict())
    tokens = words = unk = lost = 0
    for text in texts:
        encoding = judge.encode(text, add_special_tokens=False)
        for piece, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
            tokens += 1
            words += not piece.startswith("##")
            unk += piece == UNK
            lost += end - start if piece == UNK else 0
    assert (found.tokens, found.words, found.unk, found.unk_characters) == (tokens, words, unk, lost)
    assert found.characters == sum(len(text.translate(dict.fromkeys(map(ord, " \t\r\n")))) for text in texts)


@pytest.mark.parametrize(
    ("encoder", "remedy"),
    [
        (None, "raise vocabulary.alphabet_size and vocabulary.size"),
        ("/bert", "finetuning.encoder = /bert does not fit"),
    ],
)
def test_much_unk_is_a_line_that_names_the_setting(tmp_path: Path, encoder: str | None, remedy: str) -> None:
    for name, content in tokenizer_files(WORDS, True, None).items():
        (tmp_path / name).write_bytes(content)
    config = FinetuningConfig.model_validate({"tasks": ["word-order"], "encoder": encoder})
    text_encoder = TextEncoder(str(tmp_path))
    good = coverage_lines(text_encoder.coverage(["da daniel"] * 200), config)
    assert good == ["train and dev texts: 1.00 pieces a word, [UNK] 0.00% of the tokens and 0.00% of the characters"]
    # One token in a hundred is not too many, one in fifty is.
    assert len(coverage_lines(text_encoder.coverage(["da"] * 99 + ["zz"]), config)) == 1
    _, warning = coverage_lines(text_encoder.coverage(["da"] * 49 + ["zz"]), config)
    assert warning.startswith("WARNING: [UNK] is 2.0% of all tokens of these texts; ")
    assert remedy in warning
