"""Identify the language of a text by py3langid's naive Bayes over byte n-grams (Lui and Baldwin, 2012)."""

from __future__ import annotations

from typing import Any, NamedTuple

_PIECE_CHARACTERS = 1000


class Language(NamedTuple):
    code: str
    probability: float


class LanguageIdentifier:
    """The model, which takes about a second to load."""

    def __init__(self) -> None:
        from py3langid import langid

        self._model: Any = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)

    def identify(self, text: str) -> Language:
        """The most likely language of a text, judged by at most three pieces of it."""
        code, probability = self._model.classify(sample_of(text))
        return Language(code, probability)


def sample_of(text: str) -> str:
    """A thousand characters each from a quarter, a half and three quarters of a text.

    Books and pages often begin and end in another language, with licences and menus.
    """
    if len(text) <= 3 * _PIECE_CHARACTERS:
        return text
    starts = [(len(text) - _PIECE_CHARACTERS) * quarter // 4 for quarter in (1, 2, 3)]
    return "\n".join(text[start : start + _PIECE_CHARACTERS] for start in starts)
