"""Measures of a text's words and lines, for Gopher's quality rules and C4's rules on pages.

Sources: Rae et al., 2021, "Scaling Language Models", appendix A.1.1; Raffel et al., 2020, section 2.2.
"""

from __future__ import annotations

import re

from pipelines.filtering.passage import Passage

_BULLETS = ("\u2022", "\u2023", "\u2043", "\u2219", "\u25cb", "\u25cf", "\u25e6", "\u25aa", "-", "*")
_ELLIPSES = ("...", "\u2026")
_LETTER = re.compile(r"[^\W\d_]")
# A pattern that begins with its word is searched for much faster than one that begins with a condition.
_STOP_WORDS = {
    word: re.compile(rf"{word}(?!\w)(?<!\w{word})") for word in ("the", "be", "to", "of", "and", "that", "have", "with")
}
_SENTENCE_END = re.compile("[.!?][\"'\u201d\u2019)\\]]*(?=\\s|$)|[\u3002\uff01\uff1f]")


def num_words(passage: Passage) -> float:
    return float(len(passage.words))


def mean_word_length(passage: Passage) -> float:
    """Characters, punctuation included."""
    return passage.num_word_characters / max(1, len(passage.words))


def hashes_per_word(passage: Passage) -> float:
    return passage.text.count("#") / max(1, len(passage.words))


def ellipses_per_word(passage: Passage) -> float:
    return sum(map(passage.text.count, _ELLIPSES)) / max(1, len(passage.words))


def bullet_line_share(passage: Passage) -> float:
    """Share of lines that begin with a bullet point."""
    return sum(line.startswith(_BULLETS) for line in passage.lines) / max(1, len(passage.lines))


def ellipsis_line_share(passage: Passage) -> float:
    """Share of lines that end with an ellipsis."""
    return sum(line.endswith(_ELLIPSES) for line in passage.lines) / max(1, len(passage.lines))


def alphabetic_word_share(passage: Passage) -> float:
    """Share of words with at least one letter of any script."""
    others = [word for word in passage.words if not word.isalpha()]
    num_without = sum(_LETTER.search(word) is None for word in others)
    return (len(passage.words) - num_without) / max(1, len(passage.words))


def num_stop_words(passage: Passage) -> float:
    """How many of the, be, to, of, and, that, have, with occur."""
    lowered = passage.text.lower()
    return float(sum(pattern.search(lowered) is not None for pattern in _STOP_WORDS.values()))


def num_sentence_ends(passage: Passage) -> float:
    """Terminal punctuation marks, with closing quotation marks or brackets, before white space or the end."""
    return float(sum(1 for _ in _SENTENCE_END.finditer(passage.text)))


def num_lorem_ipsum(passage: Passage) -> float:
    return float(passage.text.lower().count("lorem ipsum"))


def num_curly_brackets(passage: Passage) -> float:
    """Opening ones: they occur in program text, seldom in prose."""
    return float(passage.text.count("{"))
