"""From a raw text to paragraphs and sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator

import sentencex

_PARAGRAPH_BREAK = re.compile(r"\n[ \t]*\n\s*")


def paragraphs_of(text: str) -> list[str]:
    """Split at blank lines, and join what was only wrapped: white space within a paragraph becomes one space."""
    paragraphs = (" ".join(block.split()) for block in _PARAGRAPH_BREAK.split(text))
    return [paragraph for paragraph in paragraphs if paragraph]


def sentences_of(paragraphs: list[str], language: str) -> list[str]:
    """Split paragraphs into sentences; none crosses a paragraph's end."""
    return [
        stripped
        for paragraph in paragraphs
        for sentence in sentencex.segment(language, paragraph)
        if (stripped := sentence.strip())
    ]


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
