"""Cleaning: what changes in a text and what stays, languages, limits, and the counts in the manifest."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines import shard_corpus
from pipelines.contract.manifest import read_manifest
from pipelines.documents.cleaning import _has_rare, clean_text, drop_repeated_lines
from pipelines.documents.document import Document, DocumentReader
from pipelines.documents.languages import LanguageIdentifier, sample_of
from pipelines.documents.sentences import paragraphs_of, pieces_of
from pipelines.reading.source import Reject
from pipelines.settings.documents import CleaningConfig, DocumentsConfig, SourceConfig
from pipelines.settings.languages import LANGUAGES
from pipelines.sources.formats import find_inputs

FORMS = st.sampled_from(["none", "NFC", "NFKC"])
TEXTS = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("\t\n\r\x0b\x0c\x1c\x85\u2028\u2029\ufdd0é\u0301"))
)


def cleaned(text: str, **settings: Any) -> str:
    return clean_text(text, CleaningConfig(**settings)).text


@given(TEXTS, FORMS, st.sampled_from(["keep", "drop"]))
def test_a_clean_text_is_normal_free_of_controls_and_stays_as_it_is(text: str, form: Any, repeated_lines: Any) -> None:
    settings = {"unicode_normalization": form, "repeated_lines": repeated_lines}
    found = cleaned(text, **settings)
    assert form == "none" or unicodedata.is_normalized(form, found)
    assert not [c for c in found if unicodedata.category(c) == "Cc" and c not in "\t\n"]
    assert not [c for c in found if ord(c) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(c) <= 0xFDEF]
    assert cleaned(found, **settings) == found


@given(TEXTS)
def test_cleaning_takes_nothing_but_controls_away(text: str) -> None:
    """A slow version, character by character."""
    ends, expected = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028", []
    for c in text.replace("\r\n", "\n"):
        if c in ends:
            expected.append("\n")
        elif c == "\u2029":
            expected.append("\n\n")
        elif c in "\t\n" or not (
            unicodedata.category(c) == "Cc" or ord(c) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(c) <= 0xFDEF
        ):
            expected.append(c)
    found = clean_text(text, CleaningConfig(unicode_normalization="none"))
    assert found.text == "".join(expected)
    removed = len(text.replace("\r\n", "\n").replace("\u2029", "\n\n")) - len(found.text)
    assert found.counts.get("control_characters_removed", 0) == removed


@pytest.mark.slow
def test_every_character_by_itself() -> None:
    for code in [*range(0xD800), *range(0xE000, 0x11_0000)]:
        text = f"a{chr(code)}b"
        is_noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
        is_control = unicodedata.category(chr(code)) == "Cc" and code not in (0x09, 0x0A)
        assert _has_rare(text) == (is_control or is_noncharacter or code in (0x2028, 0x2029)), hex(code)


def test_joiners_and_marks_of_damage_stay() -> None:
    text = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f680 caf\ufffd"
    assert cleaned(text) == text


def test_what_ends_lines_and_paragraphs() -> None:
    text = cleaned("One\x0bline.\x0cNext\u2028page.\u2029New paragraph.\r\n\r\nLast.")
    assert paragraphs_of(text) == ["One line. Next page.", "New paragraph.", "Last."]


def test_normal_forms_and_mojibake() -> None:
    assert cleaned("e\u0301") == "é"
    assert cleaned("ﬁne …") == "ﬁne …"
    assert cleaned("ﬁne …", unicode_normalization="NFKC") == "fine ..."
    assert cleaned("schÃ¶n &amp; “gut”", fix_mojibake=True) == "schön &amp; “gut”"
    assert cleaned("schÃ¶n") == "schÃ¶n"


@pytest.mark.parametrize(
    ("text", "kept", "dropped"),
    [
        ("a\nb\na\n\n\nc", "a\nb\n\n\nc", 1),
        ("  Menu \nText.\nMenu\n\tMenu", "  Menu \nText.", 2),
        ("\n\n \n\n", "\n\n \n\n", 0),
        ("", "", 0),
        ("a", "a", 0),
    ],
)
def test_repeated_lines(text: str, kept: str, dropped: int) -> None:
    assert drop_repeated_lines(text) == (kept, dropped)


@given(st.lists(st.text(min_size=1, max_size=9), max_size=9), st.integers(1, 20))
def test_pieces_lose_nothing_and_are_as_large_as_allowed(paragraphs: list[str], most: int) -> None:
    pieces = list(pieces_of(paragraphs, most))
    assert [paragraph for piece in pieces for paragraph in piece] == paragraphs
    assert all(len(piece) <= 1 or sum(map(len, piece)) <= most for piece in pieces)
    assert pieces, "an empty text is still one document to be judged"


def items_of(path: Path, **settings: Any) -> list[Document | Reject]:
    separator = settings.pop("document_separator", "file")
    source = SourceConfig(inputs=(str(path),), document_separator=separator)
    config = DocumentsConfig(sources=(source,), **settings)
    reader = DocumentReader(config)
    return [item for file in find_inputs(config)[0] for item in reader.read(file, source)]


def test_too_few_sentences_and_too_little_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One sentence that is long enough to be kept.")
    (tmp_path / "b.txt").write_text("Too short.")
    (tmp_path / "c.txt").write_text("One sentence is here. Another one follows it.")
    few, short, fine = items_of(tmp_path, min_sentences=2)
    assert few == Reject(f"{tmp_path.name}/a.txt", "too-few-sentences", "sentences: 1, fewer than 2")
    assert short == Reject(f"{tmp_path.name}/b.txt", "too-short", "10 characters, fewer than 20")
    assert isinstance(fine, Document)


def test_ready_sentences_are_cleaned_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A sentence with cafe\u0301 in it.\nMenu here\x01.\nMenu here\x01.\n")
    cleaning = CleaningConfig(repeated_lines="drop")
    (item,) = items_of(tmp_path, document_separator="google-bert", cleaning=cleaning)
    assert isinstance(item, Document)
    assert item.sentences == ["A sentence with café in it.", "Menu here."]


ENGLISH = "The ship left the harbour early in the morning, and nobody on the quay noticed it. "
GERMAN = "Das Schiff verließ den Hafen früh am Morgen, und niemand am Kai bemerkte es. "


def test_other_languages_are_rejected_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(ENGLISH * 3)
    (tmp_path / "b.txt").write_text(GERMAN * 3)
    english, german = items_of(tmp_path, languages=("en",))
    assert isinstance(english, Document)
    assert isinstance(german, Reject)
    assert (german.reason, german.detail[:20]) == ("language", "de with probability ")
    assert [type(item) for item in items_of(tmp_path, languages=("en", "de"))] == [Document, Document]


def test_the_codes_in_a_recipe_are_those_of_the_model() -> None:
    assert frozenset(LanguageIdentifier()._model.labels) == LANGUAGES
    with pytest.raises(ValidationError, match="no such language code: english, xx; known are ace, af"):
        DocumentsConfig(sources=(SourceConfig(inputs=("x",)),), languages=("en", "english", "xx"))


def test_a_foreign_header_does_not_decide() -> None:
    text = ENGLISH * 13 + GERMAN * 200
    assert LanguageIdentifier().identify(text).code == "de"
    assert len(sample_of(text)) < 3_003
    assert sample_of(ENGLISH) == ENGLISH


def test_real_languages(shared_data: Path) -> None:
    """The declaration of human rights in languages of many scripts, each a file named by its code."""
    identifier = LanguageIdentifier()
    codes = {
        "eng": "en",
        "fra": "fr",
        "rus": "ru",
        "jpn": "ja",
        "hin": "hi",
        "tha": "th",
        "kor": "ko",
    }
    paths = {name: shared_data / "messy/udhr2_utf8" / f"{name}.txt" for name in codes}
    found = {name: identifier.identify(path.read_text()).code for name, path in paths.items()}
    assert found == codes


def test_the_manifest_tells_what_cleaning_did(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("Ein Text mit cafe\u0301 und\x01\x02 Zeichen.\nMenü\nMenü\nMenü\n")
    (corpus / "b.txt").write_text("A text that has nothing to be mended in it.")
    (corpus / "c.txt").write_text("schÃ¶n ist es hier an der See gewesen.")
    cleaning = 'cleaning = {repeated_lines = "drop", fix_mojibake = true}'
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[run]\nworkspace = "{tmp_path}/workspace"\nworkers = 1\n[documents]\nnum_shards = 1\n{cleaning}\n'
        f'languages = ["de", "en"]\n[[documents.sources]]\ninputs = ["{corpus}"]\n'
    )
    shard_corpus.run([str(recipe)])
    manifest = read_manifest(str(tmp_path / "workspace/documents"))
    assert manifest is not None
    assert Counter(manifest.statistics["cleaning"]) == {
        "texts_mended": 1,
        "control_characters_removed": 2,
        "texts_normalized": 1,
        "lines_dropped": 2,
        "sentences_cut": 0,
    }
    assert json.dumps(manifest.statistics["rejected_by_reason"]) == "{}"
