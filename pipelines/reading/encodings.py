"""Detect the encoding of a file and decode it: byte order marks, binaries, and where decoding fails."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipelines.reading.unpacking import UnreadableError

HEAD_BYTES = 8192
PLACES_PER_STREAM = 1 << 48
"""In a packed file that can be read from its middle, a place is a stream's first byte times this, plus an offset."""

# UTF-32's little-endian mark begins with UTF-16's.
_MARKS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
_ARCHIVES = {"ZIP": (0, b"PK\3\4"), "7z": (0, b"7z\xbc\xaf\x27\x1c"), "RAR": (0, b"Rar!\x1a\7"), "tar": (257, b"ustar")}
"""Offset and bytes of their magic numbers; all of them have NULs in their heads."""
_MAX_NUL_SHARE = 0.1
_UNDECODABLE = "\udfff"


class Encoding(NamedTuple):
    """An encoding's name, and the length of the byte order mark before the text."""

    name: str
    mark_bytes: int

    @property
    def is_wide(self) -> bool:
        """Whether its line ends take more than one byte."""
        return self.name.startswith(("utf-16", "utf-32"))


def encoding_of(head: bytes, declared: str) -> Encoding:
    """The encoding given by a file's byte order mark, or else the declared one; `head` is the start of the file.

    Raises:
        UnreadableError: it is not text, or no mark gives the byte order.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return Encoding(name, len(mark))
    if declared in ("utf-16", "utf-32") and head:
        raise UnreadableError(
            "undecodable", f"no byte order mark at byte 0; say encoding = '{declared}-le' or '{declared}-be'"
        )
    for kind, (start, magic) in _ARCHIVES.items():
        if 0 in head and head[start : start + len(magic)] == magic:
            raise UnreadableError("archive", f"a {kind} archive, not a text; unpack it")
    encoding = Encoding(declared, 0)
    num_nuls = head.count(0)
    if num_nuls and not encoding.is_wide and (num_nuls > _MAX_NUL_SHARE * len(head) or not _decodes(head, declared)):
        raise _binary(head.index(0))
    return encoding


def decode(data: bytes | bytearray, encoding: str, offset: int, errors: str = "strict") -> str:
    """Decode some bytes of a file, with line ends normalized to newlines; `offset` is their place in the file.

    `errors` is Python's name for what becomes of undecodable bytes.

    Raises:
        UnreadableError: they are not in this encoding, or hold a NUL.
    """
    wide = encoding.startswith(("utf-16", "utf-32"))
    if not wide and 0 in data:
        raise _binary(offset + data.index(0))
    try:
        text = data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        place = f"not {encoding.upper()} at byte {place_name(offset + error.start)}"
        raise UnreadableError("undecodable", f"{place}: {error.reason}") from error
    if wide and "\0" in text:
        raise _binary(offset + len(text[: text.index("\0")].encode(encoding)))
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def place_name(place: int) -> str:
    """A place for messages: an offset or, after the first of several packed streams, `stream+offset`."""
    stream, offset = divmod(place, PLACES_PER_STREAM)
    return f"{stream}+{offset}" if stream else f"{offset}"


def to_utf8(blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Recode UTF-16 or UTF-32; undecodable input becomes bytes that are not UTF-8 either."""
    decoder = codecs.getincrementaldecoder(encoding)("clozeworks.mark-undecodable")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


def _binary(offset: int) -> UnreadableError:
    return UnreadableError(
        "binary", f"NUL at byte {place_name(offset)}: not text, or UTF-16 or UTF-32 without a byte order mark"
    )


def _decodes(head: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _mark_undecodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError), error
    return _UNDECODABLE, error.end


codecs.register_error("clozeworks.mark-undecodable", _mark_undecodable)
