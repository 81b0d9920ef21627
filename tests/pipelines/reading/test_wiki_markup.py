"""Prose of wikitext: links, entities and headings replaced here are those that the parser would replace."""

from __future__ import annotations

import bz2
import html
import re
from pathlib import Path

import hypothesis.strategies as st
import mwparserfromhell
import pytest
from hypothesis import given, settings

from pipelines.reading import wiki_markup
from pipelines.reading.wiki_markup import prose_of

WORDS = st.sampled_from(["a", "New York", "1.5", "é", "x=y", "A&B", "100%", "it's", "(b)"])
ENTITIES = st.sampled_from(["&amp;", "&nbsp;", "&#91;", "&#x5D;", "&lt;", "&ndash;", "&foo;", "&#1114112;", "&NBSP;"])
TITLES = st.sampled_from(["Paris", " Paris ", "Paris#History", ":Category:Towns", "fr:Paris", "C.W. Shumway & Sons"])
DROPPED = st.sampled_from(["[[File:x.jpg|thumb|alt=a b|a ", "[[Category:Towns]]", "[[Bild:x.png]]", "[[de:Paris]]"])
ADDRESSES = st.sampled_from(["http://x.y/z", "[http://x.y a b]", "http://x.y?a=1&amp;b=2", "mailto:a@b.c", "//x.y"])
LABELS = st.lists(st.one_of(WORDS, ENTITIES), min_size=0, max_size=3).map(" ".join)
LINKS = st.one_of(
    TITLES.map("[[{}]]".format),
    st.tuples(TITLES, LABELS).map(lambda parts: f"[[{parts[0]}|{parts[1]}]]"),
    st.tuples(TITLES, TITLES).map(lambda titles: f"[[{titles[0]}|see [[{titles[1]}]] too]]"),
    DROPPED.map(lambda link: link if link.endswith("]]") else f"{link}[[b]] c]]"),
    st.just("[[http://x.y]]"),
)
INLINE = st.lists(st.one_of(WORDS, ENTITIES, LINKS, ADDRESSES), min_size=1, max_size=6).map(" ".join)
LINES = st.one_of(
    INLINE,
    WORDS.map("== {} ==".format),
    WORDS.map("=== {} ===  ".format),
    WORDS.map("= {} = text behind it".format),
    INLINE.map("* {}".format),
    INLINE.map("; {} : b".format),
    st.just("----"),
)
PAGES = st.lists(LINES, min_size=1, max_size=8).map("\n".join)


def by_the_parser_alone(wikitext: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            wiki_markup,
            "_without_links",
            lambda text, dropped: wiki_markup._text_of(mwparserfromhell.parse(text, skip_style_tags=True), dropped),
        )
        return prose_of(wikitext)


@settings(max_examples=400)
@given(PAGES)
def test_prose_is_that_of_the_parser(page: str) -> None:
    assert prose_of(page) == by_the_parser_alone(page)


def test_prose_of_real_articles_is_that_of_the_parser(shared_data: Path) -> None:
    """Every page of a Wikipedia dump, tables and templates included; few of them need the parser."""
    (dump,) = (shared_data / "corpora" / "enwiki_xml").glob("*shortened.bz2")
    pages = [
        html.unescape(match.group(1))
        for match in re.finditer(r"<text[^>]*>(.*?)</text>", bz2.decompress(dump.read_bytes()).decode(), re.DOTALL)
    ]
    assert len(pages) > 200
    need_parser = 0
    for page in pages:
        prose = prose_of(page)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wiki_markup.mwparserfromhell, "parse", None)
            try:
                assert prose_of(page) == prose
            except TypeError:
                need_parser += 1
        assert prose == by_the_parser_alone(page)
    assert need_parser < len(pages) / 10


@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        ("[[Paris]] and [[Paris|the city]]s", "Paris and the citys"),
        ("a [[File:x.jpg|thumb|a [[b]] c]] d", "a d"),
        ("[[Category:Towns]][[:Category:Towns]]", "Category:Towns"),
        ("x [[a|b [[c]] d]] y", "x b c d y"),
        ("== h ==\nx", "x"),
        ("AT&amp;T &#60;b&#62; &nbsp;&#0;", "AT&T <b> &#0;"),
        ("[[A&amp;B]]", "A&B"),
        ("see http://x.y?a=1&amp;b=2 here", "see http://x.y?a=1&amp;b=2 here"),
        ("a ( , b;) ( ) [ ; ] (;c)", "a (b) (c)"),
        ("a (b, )", "a (b)"),
    ],
)
def test_what_a_reader_sees(wikitext: str, prose: str) -> None:
    assert prose_of(wikitext) == prose == by_the_parser_alone(wikitext)
