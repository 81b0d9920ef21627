"""Split a raw text into paragraphs and sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import sentencex

MAX_SPLITTING_COST = 10**10
"""Characters times marks of a paragraph that sentencex gets in one piece: about ten seconds, as its time grows with
this. A Chinese novel of half a million characters without a blank line stays below."""
_MAX_PARAGRAPH_CHARACTERS = 1 << 24
"""Twenty novels without a blank line: sentencex copies its input several times, so longer ones are split in windows."""
_WINDOW_CHARACTERS = 10_000

_ASCII_SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f"
_SPACES = _ASCII_SPACES + (
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""What `str.split` takes for white space besides " "."""
_FEW_CHARACTERS = 200
"""Looking for each kind of white space takes longer in a shorter text that is not ASCII."""

_PARAGRAPH_BREAK = re.compile(r"\n[ \t]*\n\s*")
# What sentencex compares with everything else in a paragraph: these stops, and unclosed quotation marks.
_STOPS = re.compile("[\u3002\uff01\uff0e\uff1f\uff61]")
_QUOTES = (
    ("\u201c", "\u201d"),
    ("\u2018", "\u2019"),
    ("\u00ab", "\u00bb"),
    ("\u2039", "\u203a"),
    ("\u300c", "\u300d"),
)


class Sentences(NamedTuple):
    """Sentences, and how many were cut because none ended in a window."""

    sentences: list[str]
    num_cut: int = 0


def paragraphs_of(text: str) -> list[str]:
    """Split at blank lines and unwrap: white space within a paragraph becomes one space."""
    paragraphs: list[str] = []
    start = 0
    for gap in _PARAGRAPH_BREAK.finditer(text):
        paragraphs.append(_single_spaced(text[start : gap.start()]))
        start = gap.end()
    paragraphs.append(_single_spaced(text[start:]))
    return [paragraph for paragraph in paragraphs if paragraph]


def _single_spaced(text: str) -> str:
    """`" ".join(text.split())`, in a quarter of the time and without a string for each word if there are many."""
    if len(text) < _FEW_CHARACTERS and not text.isascii():
        return " ".join(text.split())
    for space in _ASCII_SPACES if text.isascii() else _SPACES:
        if space in text:
            text = text.replace(space, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    return text.strip(" ")


def sentences_of(paragraphs: list[str], language: str) -> Sentences:
    """Split paragraphs into sentences; none crosses a paragraph's end."""
    found: list[str] = []
    num_cut = 0
    for paragraph in paragraphs:
        if _is_costly(paragraph):
            for pieces, is_cut in _in_windows(paragraph, language):
                found += _stripped(pieces)
                num_cut += is_cut
        else:
            found += _stripped(sentencex.segment(language, paragraph))
    return Sentences(found, num_cut)


def _stripped(pieces: list[str]) -> list[str]:
    return [stripped for piece in pieces if (stripped := piece.strip())]


def _is_costly(paragraph: str) -> bool:
    length = len(paragraph)
    if length > _MAX_PARAGRAPH_CHARACTERS:
        return True
    if length * length <= MAX_SPLITTING_COST or paragraph.isascii():
        return False
    num_unclosed = sum(max(0, paragraph.count(opening) - paragraph.count(closing)) for opening, closing in _QUOTES)
    return length * (len(_STOPS.findall(paragraph)) + num_unclosed) > MAX_SPLITTING_COST


def _in_windows(paragraph: str, language: str) -> Iterator[tuple[list[str], bool]]:
    """Split one window at a time; its last sentence, which may continue after it, begins the next window.

    Yields:
        A window's sentences, and whether no sentence ended in it and it was taken as it is.
    """
    start = 0
    while start < len(paragraph):
        window = paragraph[start : start + _WINDOW_CHARACTERS]
        pieces: list[str] = sentencex.segment(language, window)
        goes_on = start + len(window) < len(paragraph)
        if goes_on and len(pieces) > 1:
            pieces.pop()
            goes_on = False
        yield pieces, goes_on
        start += sum(map(len, pieces))


def pieces_of(paragraphs: list[str], max_characters: int | None) -> Iterator[list[str]]:
    """Cut a text between paragraphs into documents of at most `max_characters`; a longer paragraph is not cut."""
    if max_characters is None or not paragraphs:
        yield paragraphs
        return
    piece: list[str] = []
    num_characters = 0
    for paragraph in paragraphs:
        if piece and num_characters + len(paragraph) > max_characters:
            yield piece
            piece, num_characters = [], 0
        piece.append(paragraph)
        num_characters += len(paragraph)
    if piece:
        yield piece
