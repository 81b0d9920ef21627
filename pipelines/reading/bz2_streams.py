"""Files of many bz2 streams, as MediaWiki's dumps and parallel packers write them: each stream unpacks independently.

A range of such a file has the streams whose first byte is in it; a file of one stream belongs to its first range.
Places in the unpacked text are given as (stream's first byte in the file, offset in the unpacked stream), so they do
not depend on where reading started. Arrow's own reader fails on an empty stream.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator

import pyarrow as pa

from pipelines.reading.encodings import PLACES_PER_STREAM
from pipelines.reading.unpacking import BLOCK_BYTES, UnreadableError

# "BZh", a level, and the magic number of a block or, in an empty stream, of the stream's end.
_MAGIC = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
_MAGIC_BYTES = 10


class Bz2Streams:
    """Reads an open bz2 file from the first stream that begins in a range."""

    def __init__(self, file: pa.NativeFile, first_byte: int, end_byte: int):
        self._file = file
        begins_file = first_byte == 0 < end_byte
        self.first_stream = 0 if begins_file else _find_stream(file, first_byte, end_byte)
        """Where the range's first stream begins; None if none begins in it."""
        self._starts: list[tuple[int, int]] = []

    def blocks(self) -> Iterator[bytes]:
        """The unpacked streams, from the first one of the range to the end of the file.

        Raises:
            UnreadableError: a stream is cut off or damaged; every byte before the damage has been yielded.
        """
        assert self.first_stream is not None
        position, num_bytes = self.first_stream, 0
        while position < self._file.size():
            self._starts.append((num_bytes, position))
            reader = _Stream(self._file, position)
            for block in reader.blocks(num_bytes):
                yield block
                num_bytes += len(block)
            position = reader.end_byte

    def text_before(self) -> bytes:
        """The end of the text before the range's first stream: at least its last line, and the end of the one before.

        If the stream before is damaged, a line is taken to end there.
        """
        text, position = b"", self.first_stream
        while position and len(text.splitlines()) < 2:
            position = _find_stream_before(self._file, position)
            found = bytearray()
            try:
                for block in _Stream(self._file, position).blocks(0):
                    found += block
            except UnreadableError:
                return bytes(found) + b"\n" + text
            text = bytes(found) + text
        return text

    def place_of(self, offset: int) -> int:
        """The place of the `offset`-th unpacked byte; call it with ascending offsets."""
        while len(self._starts) > 1 and self._starts[1][0] <= offset:
            del self._starts[0]
        begin, stream = self._starts[0]
        return stream * PLACES_PER_STREAM + offset - begin


class _Stream:
    """One stream of a file."""

    def __init__(self, file: pa.NativeFile, first_byte: int):
        self._file = file
        self._first_byte = first_byte
        self.end_byte = first_byte
        """End of the stream in the file, once it is unpacked."""

    def blocks(self, bytes_before: int) -> Iterator[bytes]:
        num_bytes = 0
        try:
            for block in self._unpack():
                yield block
                num_bytes += len(block)
            return
        except (OSError, EOFError) as error:
            cause = str(error)
        # A failed call loses what it had unpacked so far: unpack again, byte by byte from there.
        left = bytearray()
        try:
            for block in self._unpack(single_bytes_from=num_bytes):
                left += block
        except (OSError, EOFError):
            del left[:num_bytes]
        if left:
            yield bytes(left)
        raise UnreadableError("truncated", f"unpacked {bytes_before + num_bytes + len(left)} bytes, then: {cause}")

    def _unpack(self, single_bytes_from: int | None = None) -> Iterator[bytes]:
        decompressor = bz2.BZ2Decompressor()
        position, num_bytes = self._first_byte, 0
        while not decompressor.eof:
            packed = b""
            if decompressor.needs_input:
                packed = self._file.read_at(BLOCK_BYTES, position)
                position += len(packed)
                if not packed:
                    raise EOFError("the bz2 stream is cut off")
            is_slow = single_bytes_from is not None and num_bytes >= single_bytes_from
            if block := decompressor.decompress(packed, 1 if is_slow else BLOCK_BYTES):
                yield block
                num_bytes += len(block)
        self.end_byte = position - len(decompressor.unused_data)


def _find_stream(file: pa.NativeFile, first_byte: int, end_byte: int) -> int | None:
    """First byte of the first stream that begins in the range."""
    for position in range(first_byte, end_byte, BLOCK_BYTES):
        found = _MAGIC.search(file.read_at(min(BLOCK_BYTES, end_byte - position) + _MAGIC_BYTES - 1, position))
        if found:
            return position + found.start()
    return None


def _find_stream_before(file: pa.NativeFile, end_byte: int) -> int:
    """First byte of the last stream that begins before a place; the file's start counts as one."""
    position = end_byte
    while position > 0:
        start = max(0, position - BLOCK_BYTES)
        found = list(_MAGIC.finditer(file.read_at(position - start + _MAGIC_BYTES - 1, start)))
        if found:
            return start + found[-1].start()
        position = start
    return 0
