"""A text as quality rules look at it: words, lines and paragraphs, each split once."""

from __future__ import annotations

import re
from functools import cached_property

from pipelines.filtering.word_grams import WordGrams

_BLANK_LINES = re.compile(r"\n\s*\n")


class Passage:
    """One cleaned text. Words are what white space separates; lines and paragraphs are those that are not blank."""

    def __init__(self, text: str):
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @cached_property
    def num_word_characters(self) -> int:
        return sum(map(len, self.words))

    @cached_property
    def lines(self) -> list[str]:
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def paragraphs(self) -> list[str]:
        return [block for block in map(str.strip, _BLANK_LINES.split(self.text)) if block]

    @cached_property
    def grams(self) -> WordGrams:
        return WordGrams(self.words)
