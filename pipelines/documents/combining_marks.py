"""Sort long runs of combining marks into canonical order, so that normalizing them is not quadratic.

`unicodedata.normalize` orders the marks after a letter by insertion: right for the two or three that writing needs,
but 80,000 marks in a row, which any file may hold, take 17 seconds and 400,000 take minutes. Marks that are already in
canonical order take no time. Nothing is cut and no result changes: normalizing would produce the same order.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Literal

MAX_UNSORTED_MARKS = 30
"""Longer runs are sorted here; no writing system needs more (Unicode Standard Annex 15, section 13)."""

# Characters of combining class 0 that decompose to marks: canonically, and by compatibility.
_COMPOSED_MARKS = frozenset("\u0f73\u0f75\u0f81")
_HALFWIDTH_MARKS = frozenset("\uff9e\uff9f")


def sort_long_runs(text: str, form: Literal["NFC", "NFKC"]) -> str:
    """Decompose the marks of each long run and sort them canonically; the result normalizes to the same text."""
    others = _COMPOSED_MARKS if form == "NFC" else _COMPOSED_MARKS | _HALFWIDTH_MARKS
    pieces: list[str] = []
    position = 0
    for start, end in _long_runs(text, others):
        pieces += (text[position:start], _in_order(text[start:end], "NFD" if form == "NFC" else "NFKD"))
        position = end
    return "".join([*pieces, text[position:]]) if pieces else text


def _long_runs(text: str, others: frozenset[str]) -> Iterator[tuple[int, int]]:
    """Where runs of more than `MAX_UNSORTED_MARKS` marks begin and end.

    Every such run covers one of the places that are probed, so most of a text is not inspected.
    """
    step = MAX_UNSORTED_MARKS + 1
    end = 0
    for index, character in enumerate(text[step - 1 :: step], start=1):
        place = index * step - 1
        if place < end or not (unicodedata.combining(character) or character in others):
            continue
        start = place
        while start > end and _is_mark(text[start - 1], others):
            start -= 1
        end = place + 1
        while end < len(text) and _is_mark(text[end], others):
            end += 1
        if end - start > MAX_UNSORTED_MARKS:
            yield start, end


def _is_mark(character: str, others: frozenset[str]) -> bool:
    return unicodedata.combining(character) != 0 or character in others


def _in_order(marks: str, form: Literal["NFD", "NFKD"]) -> str:
    decomposed = {mark: unicodedata.normalize(form, mark) for mark in set(marks)}
    return "".join(sorted("".join(decomposed[mark] for mark in marks), key=unicodedata.combining))
