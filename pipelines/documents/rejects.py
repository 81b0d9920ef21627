"""Lines of `rejected.jsonl.gz`: one for each text that became no document, with source, reason and detail."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable

from pipelines.contract import storage
from pipelines.reading.source import Reject

REJECTS_SHOWN = 3
_EXAMPLE_CHARACTERS = 300

# Magic number, deflate, no flags, no time, best compression, Unix: the bytes that zlib writes at level 9. Python's gzip
# module writes another last byte in some versions, and equal recipes must give equal bytes.
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03"
_LEVEL = 9


def write_rejects(uri: str, rejects: Iterable[Reject]) -> None:
    """Write rejects as a gzip member; concatenated members are one file."""
    lines = (json.dumps(reject.__dict__, ensure_ascii=False, sort_keys=True) + "\n" for reject in rejects)
    storage.write_bytes(uri, gzip_member("".join(lines).encode()))


def first_of_each_reason(rejects: Iterable[Reject]) -> dict[str, list[list[str]]]:
    """Source and detail of the first few rejects of each reason, for the manifest and the closing line."""
    found: dict[str, list[list[str]]] = {}
    for reject in rejects:
        examples = found.setdefault(reject.reason, [])
        if len(examples) < REJECTS_SHOWN:
            examples.append([reject.source[:_EXAMPLE_CHARACTERS], reject.detail[:_EXAMPLE_CHARACTERS]])
    return found


def gzip_member(data: bytes) -> bytes:
    """Compress data as one gzip member, to the same bytes on every version of Python."""
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    trailer = struct.pack("<LL", zlib.crc32(data), len(data) & 0xFFFFFFFF)
    return _HEADER + deflate.compress(data) + deflate.flush() + trailer
