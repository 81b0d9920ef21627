"""Names from outside have no effect on a terminal or a log."""

from __future__ import annotations

import os
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.shown_text import shown


def test_a_name_cannot_forge_a_line_or_steer_the_terminal() -> None:
    name = "a\x1b[2J\r\nerror: disk full\x9b31m\u2028\u202egpj.txt"
    assert shown(name) == r"a\x1b[2J\r\nerror: disk full\x9b31m\u2028\u202egpj.txt"


def test_bytes_of_a_name_that_are_no_utf8_are_shown_as_bytes() -> None:
    assert shown(os.fsdecode(b"caf\xe9.txt")) == r"caf\xe9.txt"


def test_long_texts_are_cut_at_the_end() -> None:
    assert shown("abcdefghij", 10) == "abcdefghij"
    assert shown("abcdefghijk", 10) == "abcdef ..."


@given(st.text(st.characters()))
def test_what_is_shown_is_one_line_that_can_be_printed(text: str) -> None:
    found = shown(text)
    found.encode()
    assert len(found.splitlines()) <= 1
    assert not [c for c in found if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert shown(found) == found
