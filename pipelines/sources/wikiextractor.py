"""WikiExtractor's output in both forms: articles between `<doc ...>` and `</doc>`, or JSON lines."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from pipelines.inputs.file_patterns import find_files
from pipelines.reading.source import InputFile, RawDocument, Reject
from pipelines.reading.text_records import Record, RecordShape, read_head, read_records
from pipelines.settings.documents import SourceConfig
from pipelines.sources.json_lines import LINES, encodable, parse_object, text_at

_HEAD_BYTES = 4096
_OPENING = re.compile(r"<doc ([^\n]*)>[ \t]*\n?")
_CLOSING = re.compile(r"^</doc>[ \t]*$", re.MULTILINE)
_CLOSING_BYTES = re.compile(rb"^</doc>\s*$", re.MULTILINE)
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


class WikiExtractor:
    def find(self, config: SourceConfig, workspace: str | None = None) -> list[InputFile]:
        return find_files(config.inputs, workspace)

    def read(self, file: InputFile, config: SourceConfig) -> Iterator[RawDocument | Reject]:
        is_json = read_head(file, config, _HEAD_BYTES).lstrip().startswith("{")
        for record in read_records(file, config, LINES if is_json else _ARTICLES):
            if isinstance(record, Reject):
                yield record
            else:
                yield from _from_json(file, record) if is_json else _from_markup(file, record)


def _begins_article(line: bytes, _is_after_blank: bool) -> bool:
    return line.startswith(b"<doc ")


def _is_whole_article(article: bytes) -> bool:
    return _CLOSING_BYTES.search(article) is not None


_ARTICLES = RecordShape(_begins_article, _is_whole_article)


def _from_markup(file: InputFile, record: Record) -> Iterator[RawDocument | Reject]:
    opening = _OPENING.match(record.text)
    if opening is None:
        yield Reject(record.source, "stray-text", f"{record.place}: text outside <doc ...> and </doc>")
        return
    attributes = dict(_ATTRIBUTE.findall(opening.group(1)))
    source = _label(file, record, attributes.get("id", ""))
    closing = _CLOSING.search(record.text, opening.end())
    if closing is None:
        yield Reject(source, "truncated", f"{record.place}: no </doc> behind it")
        return
    yield _article(source, html.unescape(attributes.get("title", "")), record.text[opening.end() : closing.start()])
    if record.text[closing.end() :].strip():
        yield Reject(record.source, "stray-text", f"{record.place}: text behind the </doc> of this article")


def _from_json(file: InputFile, record: Record) -> Iterator[RawDocument | Reject]:
    value = parse_object(record)
    if isinstance(value, Reject):
        yield value
        return
    text = text_at(value, "text", record)
    if isinstance(text, Reject):
        yield text
        return
    yield _article(_label(file, record, str(value.get("id", ""))), str(value.get("title", "")), text)


def _article(source: str, title: str, text: str) -> RawDocument | Reject:
    """An article without its title, which is alone on the first line; every line is a paragraph.

    WikiExtractor escapes `<`, `>` and `&` in the text.
    """
    paragraphs = [line for line in (html.unescape(line).strip() for line in text.split("\n")) if line]
    if paragraphs and paragraphs[0] == title.strip():
        del paragraphs[0]
        if not paragraphs:
            return Reject(source, "title-only", f"nothing below the title {title!r}")
    if not paragraphs:
        return Reject(source, "empty", "no text")
    return RawDocument(source, "\n\n".join(paragraphs))


def _label(file: InputFile, record: Record, article_id: str) -> str:
    """The label of an article: its id or, without one, its place."""
    return f"{file.name}#{encodable(article_id)}" if article_id else record.source
