"""Runs of combining marks of any length: the text that the standard requires, in linear time."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.documents.cleaning import clean_text
from pipelines.documents.combining_marks import _COMPOSED_MARKS, _HALFWIDTH_MARKS, MAX_UNSORTED_MARKS, sort_long_runs
from pipelines.settings.documents import CleaningConfig

FORMS = st.sampled_from(["NFC", "NFKC"])
MARKS = "\u0301\u0316\u0345\u0327\u05b4\u0e38\u3099\u0344" + "".join(sorted(_COMPOSED_MARKS | _HALFWIDTH_MARKS))
RUNS = st.text(st.sampled_from(MARKS), max_size=3 * MAX_UNSORTED_MARKS)
TEXTS = st.lists(st.one_of(RUNS, st.text(max_size=5), st.sampled_from(["e", "\u00e9", "\u01d6", "\u1100"]))).map(
    "".join
)


@given(TEXTS, FORMS)
def test_normalizing_gives_what_it_gives_without_sorting(text: str, form: Any) -> None:
    expected = unicodedata.normalize(form, text)
    assert unicodedata.normalize(form, sort_long_runs(text, form)) == expected
    # Control characters are removed first: marks on both sides of one then follow each other.
    plain = clean_text(text, CleaningConfig(unicode_normalization="none")).text
    found = clean_text(text, CleaningConfig(unicode_normalization=form))
    assert found.text == unicodedata.normalize(form, plain)


def test_every_character_that_decomposes_to_marks_counts_as_one() -> None:
    found = {
        chr(code)
        for code in [*range(0xD800), *range(0xE000, 0x11_0000)]
        if not unicodedata.combining(chr(code)) and unicodedata.combining(unicodedata.normalize("NFKD", chr(code))[0])
    }
    assert found == _COMPOSED_MARKS | _HALFWIDTH_MARKS


@pytest.mark.parametrize("length", [MAX_UNSORTED_MARKS, MAX_UNSORTED_MARKS + 1, 200])
def test_short_runs_are_left_alone_and_long_ones_are_not(length: int) -> None:
    for offset in range(2 * MAX_UNSORTED_MARKS):
        text = "x" * offset + ("\u0301\u0316" * length)[:length] + "y"
        assert (sort_long_runs(text, "NFC") != text) == (length > MAX_UNSORTED_MARKS)


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\u0f73", "\u0344\u0316\u0f71", "\u0e38\u0301"])
@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_a_megabyte_of_marks_takes_about_a_second(marks: str, form: Any) -> None:
    text = "a" + marks * (400_000 // len(marks))
    started = time.process_time()
    found = clean_text(text, CleaningConfig(unicode_normalization=form))
    assert time.process_time() - started < 20
    assert unicodedata.is_normalized(form, found.text)
    assert found.counts["texts_normalized"] == 1


def test_real_texts_of_many_scripts_stay_what_they_were(shared_data: Path) -> None:
    paths = sorted((shared_data / "messy/udhr2_utf8").glob("*.txt"))
    assert len(paths) > 300
    for path in paths:
        text = path.read_text()
        for form in ("NFC", "NFKC"):
            expected = clean_text(unicodedata.normalize(form, text), CleaningConfig(unicode_normalization="none")).text
            assert clean_text(text, CleaningConfig(unicode_normalization=form)).text == expected
