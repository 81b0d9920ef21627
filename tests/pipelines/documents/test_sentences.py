"""Splitting paragraphs of any length: real ones as sentencex splits them, hostile ones in bounded time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import sentencex
from hypothesis import given
from hypothesis import strategies as st

from pipelines.documents import sentences
from pipelines.documents.sentences import paragraphs_of, sentences_of


def split_as_one(paragraph: str, language: str) -> list[str]:
    return [stripped for sentence in sentencex.segment(language, paragraph) if (stripped := sentence.strip())]


SPACES = [chr(code) for code in range(0x110000) if chr(code).isspace()]


@given(st.lists(st.sampled_from([*SPACES, " ", " ", "\n", "a", "\u00e9", "\u4e2d", "\u200b"])).map("".join))
def test_any_white_space_becomes_one_space(text: str) -> None:
    """As `str.split` finds it; a text of two paragraphs has a line break before the blank line."""
    assert paragraphs_of(text.replace("\n", "\r")) == list(filter(None, [" ".join(text.split())]))


def test_each_kind_of_white_space_is_known() -> None:
    for space in SPACES:
        assert paragraphs_of(f"{space}one{space}two{space}") == ["one two"]


@pytest.mark.slow
@pytest.mark.parametrize("paragraph", ["\u4e2d\u3002", "\u201c", "\u300c\u3042\u3002\u300d", "\u00ab", "a\u3002\u201d"])
def test_marks_in_a_long_paragraph_do_not_cost_their_square(paragraph: str) -> None:
    text = paragraph * (400_000 // len(paragraph))
    started = time.process_time()
    found = sentences_of([text], "en")
    assert time.process_time() - started < 20
    assert "".join(found.sentences) == text
    assert (found.num_cut > 0) == (len(paragraph) == 1)


def test_windows_lose_nothing_and_differ_at_their_seams_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    paragraph = "\u201c\u6211\u4eec\u8d70\u5427\u3002\u201d\u4ed6\u8bf4\u3002\u5929\u9ed1\u4e86\uff01 He left. " * 500
    expected = split_as_one(paragraph, "zh")
    monkeypatch.setattr(sentences, "MAX_SPLITTING_COST", 1)
    for characters in (40, 100, 999):
        monkeypatch.setattr(sentences, "_WINDOW_CHARACTERS", characters)
        found, num_cut = sentences_of([paragraph], "zh")
        assert "".join("".join(found).split()) == "".join(paragraph.split())
        assert num_cut == 0
        num_windows = len(paragraph) // (characters // 2)
        assert len(set(expected) ^ set(found)) <= 4
        assert abs(len(found) - len(expected)) <= num_windows


@pytest.mark.slow
def test_real_texts_are_split_as_one(shared_data: Path) -> None:
    for path in sorted((shared_data / "corpora/novels100").glob("*.txt"))[:20]:
        paragraphs = paragraphs_of(path.read_text(errors="replace"))
        assert not any(map(sentences._is_costly, paragraphs))
        joined = " ".join(paragraphs)
        assert not sentences._is_costly(joined)
        assert sentences_of([joined], "en").sentences == split_as_one(joined, "en")
