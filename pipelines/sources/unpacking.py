"""Read the bytes of a file as a stream of blocks, unpacked where its name says that it is packed."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pipelines import storage

BLOCK_BYTES = 1 << 18

_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


class UnreadableError(Exception):
    """Why a file, or the rest of it, gives no records: becomes a `Reject` of this reason."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def codec_of(name: str) -> str | None:
    """Arrow's name for the compression that a file's name tells; None for a file as it is."""
    return next((codec for suffix, codec in _CODECS.items() if name.lower().endswith(suffix)), None)


def open_file(uri: str) -> pa.NativeFile:
    """Open a file for reading at any position.

    Raises:
        UnreadableError: it cannot be opened.
    """
    filesystem, path = storage.filesystem_of(uri)
    try:
        return filesystem.open_input_file(path)
    except OSError as error:
        raise unreadable(uri, error) from error


def unreadable(uri: str, error: OSError) -> UnreadableError:
    """The reason `unreadable`, with the file system's words but not with this machine's path."""
    _, path = storage.filesystem_of(uri)
    return UnreadableError("unreadable", str(error).replace(path, path.rpartition("/")[2]))


def blocks_from(stream: pa.NativeFile, uri: str, first_byte: int) -> Iterator[bytes]:
    """Blocks of an open file from a position to the end.

    Raises:
        UnreadableError: the file system failed.
    """
    try:
        stream.seek(first_byte)
        while block := stream.read(BLOCK_BYTES):
            yield block
    except OSError as error:
        raise unreadable(uri, error) from error


def unpacked_blocks(uri: str, codec: str) -> Iterator[bytes]:
    """Blocks of what a packed file holds; several packed streams in a row count as one.

    Raises:
        UnreadableError: the archive is cut off or damaged; every byte before that place has been given.
    """
    num_bytes = 0
    with open_file(uri) as packed, pa.CompressedInputStream(packed, codec) as stream:
        try:
            while block := stream.read(BLOCK_BYTES):
                yield block
                num_bytes += len(block)
            return
        except OSError as error:
            cause = str(error)
    for block in _bytes_before_damage(uri, codec, num_bytes):
        yield block
        num_bytes += len(block)
    raise UnreadableError("truncated", f"unpacked {num_bytes} bytes, then: {cause}")


def _bytes_before_damage(uri: str, codec: str, first_byte: int) -> Iterator[bytes]:
    """What lies between the last whole block and the damage: a failed read loses all that it had unpacked so far."""
    with open_file(uri) as packed, pa.CompressedInputStream(packed, codec) as stream:
        for _ in range(first_byte // BLOCK_BYTES):
            stream.read(BLOCK_BYTES)
        found = bytearray()
        try:
            while byte := stream.read(1):
                found += byte
        except OSError:
            pass
        if found:
            yield bytes(found)
