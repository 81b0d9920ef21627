"""The languages that a recipe may name for its sentences: those that the splitter knows, none silently ignored."""

# ruff: noqa: RUF001 - the probes are texts in many scripts

from __future__ import annotations

import string

import pytest
import sentencex
from pydantic import ValidationError

from pipelines.settings.documents import SourceConfig
from pipelines.settings.languages import LANGUAGES
from pipelines.settings.sentence_languages import _NAMES, SENTENCE_LANGUAGES, nearest_languages, rules_of

# For each language, text that its rules split differently from English: abbreviations, or stops of its script.
PROBES = [
    "Xx am. Yy ca. Zz bzw. Aa ggf. Bb vgl. Cc u.s.w. Dd bijv. Ee dhr. Ff a.o. Gg np. Hh tzv. Ii prof. Jj kl. Kk fx. Ll",
    "Mm p.ej. Nn Sra. Oo Ud. Pp pág. Qq M. Rr av. Ss ex. Tt Mlle. Uu Dra. Vv Exmo. Ww ecc. Xx sig. Yy dott. Zz esim. A",
    "Aa рис. Бб ул. Вв т.е. Гг стр. Дд г. Ее проф. Жж ж. Зз б. Ии вул. Йй ім. Кк ст. Лл гл. Мм бр. Нн",
    "Ամ։ Բա։ Գա՞ Դա։ Xa․ Ya.",
    "ab۔ cd؟ ef. Gh",
    "एक। दो॥ तीन. Four डॉ. Five",
    "၁ ab။ cd၊ ef။ Gh",
    "Eh; Oh; Ah· Uh. Yes κ. Na",
    "ab። cd፧ ef። gh",
    "5. januar kom. 3. mai 2020. 1. Jan 2. Feb 10. helmikuuta. 3. März war. Am 5. Juni. 1. janvier.",
]


def split(language: str) -> list[list[str]]:
    return [sentencex.segment(language, probe) for probe in PROBES]


def test_languages_follow_the_rules_that_are_said() -> None:
    for language in SENTENCE_LANGUAGES:
        assert split(language) == split(rules_of(language) or "en"), language


def test_no_other_code_has_rules() -> None:
    english = split("en")
    codes = [a + b for a in string.ascii_lowercase for b in string.ascii_lowercase]
    assert [code for code in codes if code not in SENTENCE_LANGUAGES and split(code) != english] == []


def test_languages_that_can_be_told_can_be_split() -> None:
    assert LANGUAGES <= SENTENCE_LANGUAGES
    assert rules_of("cs") == "sk"
    assert rules_of("sv") is None
    assert len(_NAMES) == 31


@pytest.mark.parametrize(
    ("language", "hint"),
    [
        ("DE", "did you mean 'de'?"),
        ("deu", "did you mean 'de'?"),
        ("german", "did you mean 'de'?"),
        ("de_DE.UTF-8", "did you mean 'de'?"),
        ("pt-BR", "did you mean 'pt' or 'pt-br'?"),
        ("zh-hant", "did you mean 'zh'?"),
        ("klingon", "use its ISO 639 code, such as 'de'"),
    ],
)
def test_what_is_no_language_is_refused_with_the_nearest(language: str, hint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SourceConfig(inputs=("x",), language=language)
    assert f"unknown language for sentence splitting; {hint}" in str(caught.value)
    assert set(nearest_languages(language)) <= SENTENCE_LANGUAGES
