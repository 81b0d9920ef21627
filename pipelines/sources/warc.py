"""WARC files (ISO 28500): the prose of HTML pages in `response` records, and the texts of `conversion` records (WET).

warcio reads the records, resiliparse finds a page's main text: both belong to the extra `warc`. A file is one unit of
work. Places are bytes of the unpacked file. A record that is neither is a reject, too, so that all are counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any

from pipelines.contract.errors import InputError
from pipelines.inputs.file_patterns import find_files
from pipelines.reading.source import InputFile, RawDocument, Reject
from pipelines.reading.unpacking import UnreadableError, blocks_from, codec_of, open_file, unpacked_blocks
from pipelines.settings.documents import SourceConfig

_HTML = ("text/html", "application/xhtml+xml")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_DETAIL_CHARACTERS = 200
_MAGIC = b"WARC/"
_OK = "200"


class Warc:
    def find(self, config: SourceConfig, workspace: str | None = None) -> list[InputFile]:
        try:
            import resiliparse
            import warcio
        except ImportError as error:
            raise InputError(
                "documents.sources: format = 'warc' needs packages that are not installed; install the extra: "
                "pip install 'clozeworks[warc]'"
            ) from error
        del resiliparse, warcio
        return find_files(config.inputs, workspace)

    def read(self, file: InputFile, config: SourceConfig) -> Iterator[RawDocument | Reject]:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed

        with ExitStack() as stack:
            try:
                blocks = _blocks_of(file, stack)
                first = next(blocks, b"")
                if first and not first.startswith(_MAGIC):
                    yield Reject(file.name, "damaged", f"begins with {first[:20]!r}, not with WARC/")
                    return
                records = ArchiveIterator(_Blocks(chain([first], blocks)))
                for record in records:
                    item = _item_of(record, config.max_record_bytes)
                    # The offset is known only once the record is read; asking earlier passes over its payload.
                    yield replace(item, source=f"{file.name}#{records.get_record_offset()}")
            except UnreadableError as error:
                yield Reject(file.name, error.reason, error.detail)
            except ArchiveLoadFailed as error:
                yield Reject(file.name, "damaged", f"not a WARC record: {error}"[:_DETAIL_CHARACTERS])


class _Blocks:
    """A file's unpacked blocks as a file that can only be read."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks = blocks
        self._held = b""

    def read(self, num_bytes: int) -> bytes:
        while not self._held:
            held = next(self._blocks, None)
            if held is None:
                return b""
            self._held = held
        data, self._held = self._held[:num_bytes], self._held[num_bytes:]
        return data


def _blocks_of(file: InputFile, stack: ExitStack) -> Iterator[bytes]:
    codec = codec_of(file.name)
    if codec is not None:
        return unpacked_blocks(file.uri, codec)
    return blocks_from(stack.enter_context(open_file(file.uri)), 0)


def _item_of(record: Any, max_bytes: int) -> RawDocument | Reject:
    """The document or reject that a record becomes, without its source."""
    source = ""
    address = (record.rec_headers.get_header("WARC-Target-URI") or "")[:_DETAIL_CHARACTERS]
    if record.rec_type == "conversion":
        if not (record.content_type or "").startswith("text/plain"):
            return Reject(source, "not-a-page", f"a conversion record of {record.content_type}: {address}")
        content_type = ""
    elif record.rec_type == "response" and record.http_headers is not None:
        status = record.http_headers.get_statuscode()
        if status != _OK:
            return Reject(source, "no-success", f"HTTP status {status}: {address}")
        content_type = record.http_headers.get_header("Content-Type") or ""
        if content_type.partition(";")[0].strip().lower() not in _HTML:
            return Reject(source, "not-a-page", f"{content_type or 'no content type'}: {address}"[:_DETAIL_CHARACTERS])
    else:
        return Reject(source, "not-a-page", f"a {record.rec_type} record: {address}")
    data = _payload_of(record, max_bytes)
    if len(data) > max_bytes:
        return Reject(source, "too-large", f"more than max_record_bytes = {max_bytes}: {address}")
    if record.raw_stream.limit:
        return Reject(source, "truncated", f"{record.raw_stream.limit} of {record.length} bytes are missing: {address}")
    if record.rec_type == "conversion":
        return _plain_text(data, source)
    text = _prose_of(data, content_type)
    return RawDocument(source, text) if text.strip() else Reject(source, "empty", f"a page without text: {address}")


def _payload_of(record: Any, max_bytes: int) -> bytes:
    """The payload without transfer and content encoding, or a little more than `max_bytes` of it."""
    stream = record.content_stream()
    data = bytearray()
    while len(data) <= max_bytes and (block := stream.read(max_bytes + 1 - len(data))):
        data += block
    return bytes(data)


def _plain_text(data: bytes, source: str) -> RawDocument | Reject:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return Reject(source, "undecodable", f"not UTF-8 at byte {error.start}: {error.reason}")
    # A line of WET is a block of the page.
    return RawDocument(source, "\n\n".join(text.splitlines()))


def _prose_of(data: bytes, content_type: str) -> str:
    """The main text of a page: menus, headers, footers and comments are left out, blocks become paragraphs.

    The encoding is that of the HTTP header, else of the page's meta element, else detected; bytes that are not in it
    become U+FFFD.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    declared = _CHARSET.search(content_type)
    encoding = map_encoding_to_html5(declared.group(1), False) if declared else None
    encoding = encoding or detect_encoding(data, from_html_meta=True) or "utf-8"
    html = data.decode(encoding, "replace").removeprefix("\ufeff")
    return str(extract_plain_text(html, main_content=True, alt_texts=False, comments=False, list_bullets=False))
