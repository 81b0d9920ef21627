"""The languages that a source may name for sentence splitting, and the rules that sentencex follows for them.

sentencex takes any string and silently falls back to its English rules. The codes here are those that it knows, found
by trying every code of two and three letters on abbreviations and stops of all its languages (a test repeats this),
and those of `pipelines.settings.languages`, for which it has no specific rules.
"""

from __future__ import annotations

import difflib

from pipelines.settings.languages import LANGUAGES

# Code, English name, and three-letter codes.
_WITH_RULES = """
am amharic amh, ar arabic ara, bg bulgarian bul, bn bengali ben, ca catalan cat, da danish dan, de german deu ger,
el greek ell gre, en english eng, es spanish spa, fi finnish fin, fr french fra fre, gu gujarati guj, hi hindi hin,
hy armenian hye arm, it italian ita, ja japanese jpn, kk kazakh kaz, kn kannada kan, ml malayalam mal, mr marathi mar,
my burmese mya bur, nl dutch nld dut, pa punjabi pan, pl polish pol, pt portuguese por, ru russian rus,
sk slovak slk slo, ta tamil tam, te telugu tel, uk ukrainian ukr
"""
_NAMES = {names.split()[0]: names.split() for names in _WITH_RULES.replace("\n", " ").split(",")}

# Languages that follow another one's rules.
_FOLLOWERS = {
    "ar": "acm aeb aeb-arab apc arq ary arz",
    "bn": "bpy",
    "ca": "oc",
    "da": "jut kl",
    "de": "als bar de-at de-ch de-formal dsb frr gsw hrx hsb ksh lb nds pdc pdt pfl rm sli stq vmf",
    "el": "pnt",
    "en": "en-ca en-gb sco simple",
    "es": "an arn ast ay es-formal ext gn guc lad nah qu qug",
    "fi": "fit krl olo smn vot",
    "fr": "atj avk bci bm dua fon frc frp gcf gcr hke ht kab kbp ln lua mg pcd ses sg shy shy-latn ty wa wls wo",
    "hi": "anp awa mag mai sa",
    "hy": "hyw",
    "it": "aae co egl eml fur lij lld lmo nap pms rgn scn sdc sro vec",
    "kk": "kaa kk-arab kk-cn kk-cyrl kk-latn",
    "kn": "tcy",
    "my": "blk kjp ksw mnw",
    "nl": "li nds-nl nl-informal srn vls",
    "pl": "csb szl",
    "pt": "gl kea mwl pt-br tet vmw",
    "ru": (
        "ab alt av ba bxr ce cv gld inh kjh koi krc kum kv lbe lez mdf mhr mrj myv os rut sah sjd sty tt tt-cyrl tyv "
        "udm xal"
    ),
    "sk": "cs",
    "uk": "rue",
}
_RULES = {code: code for code in _NAMES} | {
    code: rules for rules, codes in _FOLLOWERS.items() for code in codes.split()
}

SENTENCE_LANGUAGES = frozenset(_RULES) | LANGUAGES


def rules_of(language: str) -> str | None:
    """The language whose sentence rules apply to a language; None if only the general rules apply."""
    return _RULES.get(language)


def nearest_languages(text: str) -> list[str]:
    """Codes that an unknown one may stand for: another case or region, a name, a longer code."""
    wanted = text.strip().lower().replace("_", "-")
    base = wanted.partition("-")[0]
    named = [code for code, names in _NAMES.items() if base in names]
    if base in SENTENCE_LANGUAGES:
        named.append(wanted if wanted in SENTENCE_LANGUAGES else base)
    names = {name: code for code, aliases in _NAMES.items() for name in aliases}
    close = [names.get(name, name) for name in difflib.get_close_matches(base, [*names, *SENTENCE_LANGUAGES], n=3)]
    return list(dict.fromkeys(named)) or list(dict.fromkeys(sorted(close)))
