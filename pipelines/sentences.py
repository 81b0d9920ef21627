"""From a raw text to paragraphs and sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import sentencex

MAX_SPLITTING_COST = 10**10
"""Characters times marks of a paragraph that sentencex gets as one: about ten seconds, for its time grows with this. A
Chinese novel of half a million characters without a blank line stays below."""
_WINDOW_CHARACTERS = 10_000

_PARAGRAPH_BREAK = re.compile(r"\n[ \t]*\n\s*")
# What sentencex compares with all else in a paragraph: these stops, and quotation marks that nothing closes.
_STOPS = re.compile("[\u3002\uff01\uff0e\uff1f\uff61]")
_QUOTES = (
    ("\u201c", "\u201d"),
    ("\u2018", "\u2019"),
    ("\u00ab", "\u00bb"),
    ("\u2039", "\u203a"),
    ("\u300c", "\u300d"),
)


class Sentences(NamedTuple):
    """Sentences, and how many cuts fell within one because none ended in a window."""

    sentences: list[str]
    num_cut: int = 0


def paragraphs_of(text: str) -> list[str]:
    """Split at blank lines, and join what was only wrapped: white space within a paragraph becomes one space."""
    paragraphs = (" ".join(block.split()) for block in _PARAGRAPH_BREAK.split(text))
    return [paragraph for paragraph in paragraphs if paragraph]


def sentences_of(paragraphs: list[str], language: str) -> Sentences:
    """Split paragraphs into sentences; none crosses a paragraph's end."""
    found: list[str] = []
    num_cut = 0
    for paragraph in paragraphs:
        if _is_costly(paragraph):
            pieces, cuts = _in_windows(paragraph, language)
            num_cut += cuts
        else:
            pieces = sentencex.segment(language, paragraph)
        found += [stripped for sentence in pieces if (stripped := sentence.strip())]
    return Sentences(found, num_cut)


def _is_costly(paragraph: str) -> bool:
    length = len(paragraph)
    if length * length <= MAX_SPLITTING_COST or paragraph.isascii():
        return False
    num_unclosed = sum(max(0, paragraph.count(opening) - paragraph.count(closing)) for opening, closing in _QUOTES)
    return length * (len(_STOPS.findall(paragraph)) + num_unclosed) > MAX_SPLITTING_COST


def _in_windows(paragraph: str, language: str) -> Sentences:
    """Split a window at a time; its last sentence, which may go on behind it, begins the next window."""
    found: list[str] = []
    num_cut = start = 0
    while start < len(paragraph):
        window = paragraph[start : start + _WINDOW_CHARACTERS]
        pieces: list[str] = sentencex.segment(language, window)
        if start + len(window) < len(paragraph):
            if len(pieces) > 1:
                pieces.pop()
            else:
                num_cut += 1
        found += pieces
        start += sum(map(len, pieces))
    return Sentences(found, num_cut)


def pieces_of(paragraphs: list[str], max_characters: int | None) -> Iterator[list[str]]:
    """Cut a text between paragraphs into documents of at most `max_characters`; a longer paragraph stays whole."""
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
