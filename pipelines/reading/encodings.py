"""Which encoding a file has, and bytes to text: byte order marks, binaries, and where decoding fails."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipelines.reading.unpacking import UnreadableError

HEAD_BYTES = 8192
PLACES_PER_STREAM = 1 << 48
"""Of a packed file that can be read from its middle, a place is its stream's first byte times this, plus an offset."""

# UTF-32's little-endian mark begins with UTF-16's.
_MARKS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
_ARCHIVES = {"ZIP": (0, b"PK\3\4"), "7z": (0, b"7z\xbc\xaf\x27\x1c"), "RAR": (0, b"Rar!\x1a\7"), "tar": (257, b"ustar")}
"""Where their marks stand; all of them have NULs in their heads."""
_MAX_NUL_SHARE = 0.1
_UNDECODABLE = "\udfff"


class Encoding(NamedTuple):
    """An encoding's name, and how many bytes of mark stand before the text."""

    name: str
    mark_bytes: int

    @property
    def is_wide(self) -> bool:
        """Are its line ends more than one byte?"""
        return self.name.startswith(("utf-16", "utf-32"))


def encoding_of(head: bytes, declared: str) -> Encoding:
    """The encoding that a file's byte order mark tells, or the declared one; `head` is the start of the file.

    Raises:
        UnreadableError: it is no text, or no mark tells the byte order.
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


def decode(data: bytes | bytearray, encoding: str, offset: int) -> str:
    """Text of some bytes of a file, with line ends made one newline; `offset` is their place in the file.

    Raises:
        UnreadableError: they are not of this encoding, or hold a NUL.
    """
    wide = encoding.startswith(("utf-16", "utf-32"))
    if not wide and 0 in data:
        raise _binary(offset + data.index(0))
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        place = f"not {encoding.upper()} at byte {place_name(offset + error.start)}"
        raise UnreadableError("undecodable", f"{place}: {error.reason}") from error
    if wide and "\0" in text:
        raise _binary(offset + len(text[: text.index("\0")].encode(encoding)))
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def place_name(place: int) -> str:
    """A place for people: an offset or, behind the first of several packed streams, `stream+offset`."""
    stream, offset = divmod(place, PLACES_PER_STREAM)
    return f"{stream}+{offset}" if stream else f"{offset}"


def to_utf8(blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Recode UTF-16 or UTF-32. What cannot be decoded becomes bytes that are not UTF-8 either."""
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
