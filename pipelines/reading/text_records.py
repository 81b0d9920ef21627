"""Records of a text file, found by the lines they begin with; complete files and byte ranges give the same ones.

A record extends from a line that begins one to the next such line, and belongs to the range with its first byte. A
file's first line always begins a record, so that nothing is lost. Whether a line begins a record depends only on that
line and on whether the one before is blank: a range can be read without the text before it.

Offsets count the bytes of the unpacked text; in a bz2 file of many streams, those of one stream, whose own offset is
named before them (`encodings.place_name`). UTF-16 and UTF-32 are recoded to UTF-8 first and not split: their offsets
are those of the UTF-8 text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from typing import NamedTuple

import pyarrow as pa

from pipelines.reading.bz2_streams import Bz2Streams
from pipelines.reading.encodings import (
    HEAD_BYTES,
    PLACES_PER_STREAM,
    Encoding,
    decode,
    encoding_of,
    place_name,
    to_utf8,
)
from pipelines.reading.source import InputFile, Reject
from pipelines.reading.unpacking import BLOCK_BYTES, UnreadableError, blocks_from, codec_of, open_file, unpacked_blocks
from pipelines.settings.documents import SourceConfig

_LINE_END_BYTE = re.compile(rb"[\r\n]")


class RecordShape(NamedTuple):
    """How the records of a format are recognized by their bytes."""

    begins: Callable[[bytes, bool], bool]
    """Whether this line begins a record; the second argument is whether the line before is blank."""
    is_whole: Callable[[bytes], bool]
    """Whether a record is complete although the file breaks off after it."""
    decoding_errors: str = "strict"
    """What becomes of undecodable bytes, by Python's name; `strict` rejects the record."""


class Record(NamedTuple):
    """One record's text. Its line number, from 1, is unknown (0) in a range that does not begin with the file."""

    source: str
    offset: int
    line_number: int
    text: str

    @property
    def place(self) -> str:
        """Where the record begins, for messages."""
        return f"line {self.line_number}" if self.line_number else f"byte {place_name(self.offset)}"


class _Line(NamedTuple):
    """A line with its end; `data` lacks the rest of one that is longer than a record may be."""

    offset: int
    data: bytes
    size_bytes: int


class _Lines(NamedTuple):
    """Lines from the first one in a range to the end of the file; records that begin before `end_byte` count."""

    lines: Iterator[_Line]
    end_byte: float
    encoding: str
    is_from_start: bool
    is_after_blank: bool


_NO_LINES = _Lines(iter(()), 0, "", is_from_start=False, is_after_blank=False)


def read_records(file: InputFile, config: SourceConfig, shape: RecordShape) -> Iterator[Record | Reject]:
    """Decoded records that begin in the file's range, without blank ones."""
    begins, max_bytes, errors = shape.begins, config.max_record_bytes, shape.decoding_errors
    pending: _Pending | None = None
    with ExitStack() as stack:
        try:
            lines, end_byte, encoding, is_from_start, is_after_blank = _open_lines(file, config, stack)
            for line_number, line in enumerate(lines, start=1):
                if (line_number == 1 and is_from_start) or begins(line.data, is_after_blank):
                    if pending is not None:
                        yield from pending.finished()
                    pending = None
                    if line.offset < end_byte:
                        number = line_number if is_from_start else 0
                        pending = _Pending(file, encoding, errors, max_bytes, line.offset, number)
                if pending is not None:
                    pending.append(line)
                elif line.offset >= end_byte:
                    return
                is_after_blank = not line.data.strip()
            if pending is not None:
                yield from pending.finished()
        except UnreadableError as error:
            if pending is not None and shape.is_whole(b"".join(pending.lines)):
                yield from pending.finished()
            yield Reject(file.name, error.reason, error.detail)


class _Pending:
    """A record that is being read."""

    def __init__(self, file: InputFile, encoding: str, errors: str, max_bytes: int, offset: int, line_number: int):
        self._file = file
        self._encoding = encoding
        self._errors = errors
        self._max_bytes = max_bytes
        self._offset = offset
        self._line_number = line_number
        self._size_bytes = 0
        self.lines: list[bytes] = []

    def append(self, line: _Line) -> None:
        self._size_bytes += line.size_bytes
        # The rest of an oversized record is counted, but not kept.
        if self._size_bytes <= self._max_bytes:
            self.lines.append(line.data)

    def finished(self) -> Iterator[Record | Reject]:
        source = f"{self._file.name}#{place_name(self._offset)}"
        if self._size_bytes > self._max_bytes:
            yield Reject(source, "too-large", _too_large(self._size_bytes, self._max_bytes))
            return
        data = b"".join(self.lines)
        if not data.strip():
            return
        try:
            text = decode(data, self._encoding, self._offset, self._errors)
        except UnreadableError as error:
            yield Reject(source, error.reason, error.detail)
        else:
            yield Record(source, self._offset, self._line_number, text)


def read_whole(file: InputFile, config: SourceConfig) -> Record | Reject:
    """Read a file as one record."""
    if codec_of(file.name) is None and file.size_bytes > config.max_record_bytes:
        return Reject(file.name, "too-large", _too_large(file.size_bytes, config.max_record_bytes))
    with ExitStack() as stack:
        try:
            blocks = _blocks_of(file, stack)
            data = bytearray()
            for block in blocks:
                data += block
                if len(data) > config.max_record_bytes:
                    return Reject(file.name, "too-large", _too_large(len(data), config.max_record_bytes))
            encoding = encoding_of(bytes(data[:HEAD_BYTES]), config.encoding)
            del data[: encoding.mark_bytes]
            text = decode(data, encoding.name, encoding.mark_bytes)
        except UnreadableError as error:
            return Reject(file.name, error.reason, error.detail)
    return Record(file.name, 0, 1, text)


def read_head(file: InputFile, config: SourceConfig, num_bytes: int) -> str:
    """About the first `num_bytes` of a file as text, to detect its format; empty if it cannot be read."""
    with ExitStack() as stack:
        try:
            data = _first_bytes(_blocks_of(file, stack), num_bytes)
            encoding = encoding_of(data[:HEAD_BYTES], config.encoding)
        except UnreadableError:
            return ""
    return data[encoding.mark_bytes : num_bytes].decode(encoding.name, "replace")


def _blocks_of(file: InputFile, stack: ExitStack) -> Iterator[bytes]:
    codec = codec_of(file.name)
    if codec is not None and codec != "bz2":
        return unpacked_blocks(file.uri, codec)
    stream = stack.enter_context(open_file(file.uri))
    return blocks_from(stream, 0) if codec is None else Bz2Streams(stream, 0, 1).blocks()


def _open_lines(file: InputFile, config: SourceConfig, stack: ExitStack) -> _Lines:
    """Find the first line that begins in the file's range.

    Raises:
        UnreadableError: the file is not text, or cannot be read. (Of a file's ranges, only the first reports this.)
    """
    codec = codec_of(file.name)
    if codec == "bz2":
        return _lines_of_streams(stack.enter_context(open_file(file.uri)), file, config)
    if codec is not None:
        assert file.first_byte == 0, file
        return _lines_from_start(unpacked_blocks(file.uri, codec), file, config)
    stream = stack.enter_context(open_file(file.uri))
    if file.begins_file:
        return _lines_from_start(blocks_from(stream, 0), file, config)
    end_byte = file.size_bytes if file.end_byte is None else file.end_byte
    encoding = _encoding_for_ranges(stream.read_at(HEAD_BYTES, 0), config)
    if encoding is None:
        return _NO_LINES
    offset = _first_line_in(stream, file.first_byte, end_byte, encoding.mark_bytes)
    if offset is None:
        return _NO_LINES
    is_after_blank = _is_after_blank(stream, offset, encoding.mark_bytes)
    lines = _split_lines(blocks_from(stream, offset), offset, config.max_record_bytes)
    return _Lines(lines, end_byte, encoding.name, offset == encoding.mark_bytes, is_after_blank)


def _lines_from_start(blocks: Iterator[bytes], file: InputFile, config: SourceConfig) -> _Lines:
    head = _first_bytes(blocks, HEAD_BYTES)
    encoding = encoding_of(head[:HEAD_BYTES], config.encoding)
    rest = chain([head[encoding.mark_bytes :]], blocks)
    end_byte = float("inf") if file.end_byte is None else file.end_byte
    if encoding.is_wide:
        lines = _split_lines(to_utf8(rest, encoding.name), 0, config.max_record_bytes)
        return _Lines(lines, float("inf"), "utf-8", is_from_start=True, is_after_blank=True)
    lines = _split_lines(rest, encoding.mark_bytes, config.max_record_bytes)
    return _Lines(lines, end_byte, encoding.name, is_from_start=True, is_after_blank=True)


def _lines_of_streams(packed: pa.NativeFile, file: InputFile, config: SourceConfig) -> _Lines:
    end_byte = file.size_bytes if file.end_byte is None else file.end_byte
    streams = Bz2Streams(packed, file.first_byte, end_byte)
    if streams.first_stream is None:
        return _NO_LINES
    end_place = end_byte * PLACES_PER_STREAM
    blocks, max_bytes = streams.blocks(), config.max_record_bytes
    if file.begins_file:
        head = _first_bytes(blocks, HEAD_BYTES)
        encoding = encoding_of(head[:HEAD_BYTES], config.encoding)
        if encoding.is_wide:
            return _lines_from_start(chain([head], blocks), file, config)
        lines = _split_lines(chain([head[encoding.mark_bytes :]], blocks), encoding.mark_bytes, max_bytes)
        return _Lines(_placed(lines, streams), end_place, encoding.name, is_from_start=True, is_after_blank=True)
    head = _first_bytes(Bz2Streams(packed, 0, 1).blocks(), HEAD_BYTES)[:HEAD_BYTES]
    common = _encoding_for_ranges(head, config)
    if common is None:
        return _NO_LINES
    before = streams.text_before()
    text = before.removeprefix(head[: common.mark_bytes])
    lines = _split_lines(chain([text], blocks), -len(text), max_bytes)
    is_after_blank = True
    for line in lines:
        if line.offset >= 0:
            placed = _placed(chain([line], lines), streams)
            return _Lines(placed, end_place, common.name, is_from_start=not text, is_after_blank=is_after_blank)
        is_after_blank = not line.data.strip()
    return _NO_LINES


def _placed(lines: Iterable[_Line], streams: Bz2Streams) -> Iterator[_Line]:
    for line in lines:
        yield _Line(streams.place_of(line.offset), line.data, line.size_bytes)


def _first_bytes(blocks: Iterator[bytes], num_bytes: int) -> bytes:
    """At least `num_bytes` bytes, or all of them."""
    data = bytearray()
    for block in blocks:
        data += block
        if len(data) >= num_bytes:
            break
    return bytes(data)


def _encoding_for_ranges(head: bytes, config: SourceConfig) -> Encoding | None:
    """The encoding, or None if the range at the file's start reads or rejects the complete file."""
    try:
        encoding = encoding_of(head, config.encoding)
    except UnreadableError:
        return None
    return None if encoding.is_wide else encoding


def _split_lines(blocks: Iterable[bytes], offset: int, max_bytes: int) -> Iterator[_Line]:
    """Lines that end in LF, CR or CRLF, from blocks of which the first begins a line at `offset`."""
    begun: list[bytes] = []
    begun_bytes = 0
    held = b""
    for block in blocks:
        data = held + block
        # A CR at the end may be half of a CRLF.
        held = b"\r" if data.endswith(b"\r") else b""
        lines = data[: len(data) - len(held)].splitlines(keepends=True)
        rest = lines.pop() if lines and not lines[-1].endswith((b"\n", b"\r")) else b""
        if lines and begun:
            size_bytes = begun_bytes + len(lines[0])
            yield _Line(offset, b"".join([*begun, lines[0]]), size_bytes)
            offset += size_bytes
            begun, begun_bytes = [], 0
            del lines[0]
        for line in lines:
            yield _Line(offset, line, len(line))
            offset += len(line)
        if rest:
            if begun_bytes <= max_bytes:
                begun.append(rest)
            begun_bytes += len(rest)
    if begun or held:
        yield _Line(offset, b"".join(begun) + held, begun_bytes + len(held))


def _first_line_in(stream: pa.NativeFile, first_byte: int, end_byte: int, text_start: int) -> int | None:
    """Offset of the first line that begins in the range; only the range is searched."""
    if first_byte <= text_start:
        return text_start if text_start < end_byte else None
    for position in range(first_byte - 1, end_byte, BLOCK_BYTES):
        found = _LINE_END_BYTE.search(stream.read_at(min(BLOCK_BYTES, end_byte - position), position))
        if found:
            offset = position + found.end()
            if found.group() == b"\r" and stream.read_at(1, offset) == b"\n":
                offset += 1
            return offset if offset < end_byte else None
    return None


def _is_after_blank(stream: pa.NativeFile, offset: int, text_start: int) -> bool:
    """Whether the line before the one at `offset` is blank; a file's start counts as a blank line."""
    position = max(text_start, offset - 2)
    ending = stream.read_at(offset - position, position)
    position = offset - (2 if ending == b"\r\n" else 1)
    while position > text_start:
        start = max(text_start, position - HEAD_BYTES)
        data = stream.read_at(position - start, start)
        line_start = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if data[line_start:].strip():
            return False
        if line_start:
            return True
        position = start
    return True


def _too_large(size_bytes: int, max_bytes: int) -> str:
    return f"{size_bytes} bytes, more than max_record_bytes = {max_bytes}"
