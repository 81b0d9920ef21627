"""Which language a text is in, told by py3langid's naive Bayes over byte n-grams (Lui and Baldwin, 2012)."""

from __future__ import annotations

from typing import Any, NamedTuple

_CODES = """
ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv
fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky
la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh
se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu zxx
"""
LANGUAGES = frozenset(_CODES.split())
"""The codes that the model knows; `zxx` is text without language. Here, so that a recipe is checked without loading."""

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
        """The likeliest language of a text, of which no more than three pieces are looked at."""
        code, probability = self._model.classify(sample_of(text))
        return Language(code, probability)


def sample_of(text: str) -> str:
    """A thousand characters each from a quarter, a half and three quarters of a text.

    Books and pages often begin and end in another language than their own, with licences and menus.
    """
    if len(text) <= 3 * _PIECE_CHARACTERS:
        return text
    starts = [(len(text) - _PIECE_CHARACTERS) * quarter // 4 for quarter in (1, 2, 3)]
    return "\n".join(text[start : start + _PIECE_CHARACTERS] for start in starts)
