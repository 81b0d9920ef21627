"""Shares of a text that repeat within it, for Gopher's repetition rules (Rae et al., 2021, table A1).

A duplicate line or paragraph equals an earlier one. A duplicate n-gram of words occurs at least twice, and all its
occurrences count; so do those of the most frequent n-gram, which is the one that covers most if several are equally
frequent. Their shares are those of the words' characters, each counted once.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.filtering.passage import Passage


def duplicate_line_share(passage: Passage) -> float:
    return _duplicate_share(passage.lines)


def duplicate_line_character_share(passage: Passage) -> float:
    return _duplicate_character_share(passage.lines)


def duplicate_paragraph_share(passage: Passage) -> float:
    return _duplicate_share(passage.paragraphs)


def duplicate_paragraph_character_share(passage: Passage) -> float:
    return _duplicate_character_share(passage.paragraphs)


def top_gram_share(passage: Passage, words_per_gram: int) -> float:
    """Share of characters in the most frequent n-gram; 0 if each occurs once."""
    return passage.grams.top_share(words_per_gram)


def duplicate_gram_share(passage: Passage, words_per_gram: int) -> float:
    """Share of characters in n-grams that occur more than once."""
    return passage.grams.duplicate_share(words_per_gram)


def _duplicate_share(blocks: Sequence[str]) -> float:
    return (len(blocks) - len(set(blocks))) / max(1, len(blocks))


def _duplicate_character_share(blocks: Sequence[str]) -> float:
    num_characters = sum(map(len, blocks))
    return (num_characters - sum(map(len, set(blocks)))) / max(1, num_characters)
