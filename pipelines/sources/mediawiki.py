"""MediaWiki XML dumps: the articles' prose, page by page.

Pages are cut out of the dump by their lines and parsed one at a time, so a damaged page costs only itself, and memory
is bounded by a page. Text in these dumps is escaped: a line that begins with `<page>` is always the start of a page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree.ElementTree import ParseError

import mwxml  # type: ignore[import-untyped]
from mwparserfromhell.parser import ParserError

from pipelines.inputs.file_patterns import find_files
from pipelines.reading.source import InputFile, RawDocument, Reject
from pipelines.reading.text_records import Record, RecordShape, read_head, read_records
from pipelines.reading.wiki_markup import prose_of
from pipelines.settings.documents import SourceConfig

_HEAD_BYTES = 1 << 20
_PAGE_END = "</page>"
_ARTICLES, _FILES, _CATEGORIES = 0, 6, 14
_SITE_INFO = re.compile(r"<siteinfo>.*?</siteinfo>", re.DOTALL)
_NO_SITE_INFO = "<siteinfo></siteinfo>"
_REDIRECT = re.compile(r"\s*#\s*\w+\s*:?\s*\[\[")
# `mwxml` checks structure, not values: a wrong number or a missing title raises one of the built-in errors.
_BAD_PAGE = (mwxml.errors.MalformedXML, ParseError, ValueError, TypeError, AttributeError, LookupError)


class _Page(NamedTuple):
    page_id: int | None
    title: str
    namespace: int
    is_redirect: bool
    model: str
    wikitext: str


class MediaWiki:
    def find(self, config: SourceConfig, workspace: str | None = None) -> list[InputFile]:
        return find_files(config.inputs, workspace)

    def read(self, file: InputFile, config: SourceConfig) -> Iterator[RawDocument | Reject]:
        site_info = _site_info(read_head(file, config, _HEAD_BYTES))
        dropped = _dropped_namespaces(site_info)
        for record in read_records(file, config, _PAGES):
            if isinstance(record, Reject):
                yield record
            elif record.text.lstrip().startswith("<page>"):
                yield _article(file, record, site_info, dropped)
            elif "<mediawiki" not in record.text:
                yield Reject(record.source, "not-mediawiki", "no <mediawiki> and no <page> at the start of a line")
            elif "<siteinfo>" in record.text and not _SITE_INFO.search(record.text):
                yield Reject(record.source, "truncated", "no </siteinfo> behind the dump's <siteinfo>")


def _begins_page(line: bytes, _is_after_blank: bool) -> bool:
    return line.lstrip().startswith(b"<page>")


def _is_whole_page(page: bytes) -> bool:
    return _PAGE_END.encode() in page


_PAGES = RecordShape(_begins_page, _is_whole_page)


def _site_info(head: str) -> str:
    """The dump's own description, which names its namespaces; hand-made extracts often have none."""
    found = _SITE_INFO.search(head)
    if found is None:
        return _NO_SITE_INFO
    try:
        _dump(found.group(), "")
    except _BAD_PAGE:
        return _NO_SITE_INFO
    return found.group()


def _dump(site_info: str, page: str) -> mwxml.Dump:
    return mwxml.Dump.from_file(io.StringIO(f"<mediawiki>{site_info}{page}</mediawiki>"))


def _dropped_namespaces(site_info: str) -> frozenset[str]:
    namespaces = _dump(site_info, "").site_info.namespaces or []
    return frozenset(space.name.lower() for space in namespaces if space.id in (_FILES, _CATEGORIES))


def _article(file: InputFile, record: Record, site_info: str, dropped: frozenset[str]) -> RawDocument | Reject:
    page_xml, end, _ = record.text.rpartition(_PAGE_END)
    if not end:
        return Reject(record.source, "truncated", f"{record.place}: no </page> behind it")
    try:
        page = _parse(site_info, page_xml + end)
    except _BAD_PAGE as error:
        return Reject(record.source, "bad-xml", f"{record.place}: {error}")
    source = record.source if page.page_id is None else f"{file.name}#{page.page_id}"
    if page.is_redirect or _REDIRECT.match(page.wikitext):
        return Reject(source, "redirect", f"{page.title!r} only points to another page")
    if page.namespace != _ARTICLES:
        return Reject(source, "not-an-article", f"{page.title!r} is in namespace {page.namespace}")
    if page.model != "wikitext":
        return Reject(source, "not-wikitext", f"{page.title!r} is {page.model}")
    try:
        prose = prose_of(page.wikitext, dropped)
    except (ParserError, RecursionError) as error:
        return Reject(source, "bad-markup", f"{page.title!r}: {error}")
    return RawDocument(source, prose) if prose else Reject(source, "empty", f"{page.title!r} has no prose")


def _parse(site_info: str, page_xml: str) -> _Page:
    """A page with its newest revision, which is the last."""
    if "<ns>" in page_xml.partition("<revision")[0]:
        # The names of namespaces serve pages that do not state their own.
        site_info = _NO_SITE_INFO
    page = next(_dump(site_info, page_xml).pages)
    content = None
    for revision in page:
        content = revision.slots.contents.get("main")
    model = (content.model if content is not None else None) or "wikitext"
    wikitext = (content.text if content is not None else None) or ""
    return _Page(page.id, page.title, page.namespace, page.redirect is not None, model, wikitext)
