"""Read the bytes of a file as a stream of blocks, unpacked if its suffix names a compression."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown

BLOCK_BYTES = 1 << 18

_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


class UnreadableError(Exception):
    """Why a file, or the rest of it, gives no records; becomes a `Reject` with this reason."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def codec_of(name: str) -> str | None:
    """Arrow's name for the compression that a file's suffix names; None for an uncompressed file."""
    return next((codec for suffix, codec in _CODECS.items() if name.lower().endswith(suffix)), None)


def unpacked_bytes(name: str, size_bytes: int) -> int:
    """Estimate of the size of a file, or a part of it, once it is unpacked: text expands fourfold."""
    return size_bytes if codec_of(name) is None else 4 * size_bytes


class StorageFaultError(InputError):
    """The file system failed, which says nothing about the file: retried, then an error, never a reject."""

    @classmethod
    def of(cls, uri: str, action: str, error: OSError) -> StorageFaultError:
        # Arrow's text repeats the path and the error number.
        reason = os.strerror(error.errno) if error.errno else str(error)
        return cls(f"{shown(uri)}: {action} failed: {shown(reason)}")


class _GuardedFile:
    """A file whose own failures are distinguished from those of its decoder: both would be an OSError."""

    def __init__(self, uri: str, file: pa.NativeFile):
        self._uri = uri
        self._file = file

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def read(self, num_bytes: int | None = None) -> Any:
        try:
            return self._file.read(None if num_bytes is None or num_bytes < 0 else num_bytes)
        except OSError as error:
            raise StorageFaultError.of(self._uri, "reading", error) from error

    def seek(self, position: int, whence: int = 0) -> Any:
        return self._file.seek(position, whence)

    def tell(self) -> Any:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def open_file(uri: str) -> pa.NativeFile:
    """Open a file for reading at any position.

    Raises:
        StorageFaultError: it cannot be opened, or a later read fails. If a file that was found is gone or unreadable,
            the storage is at fault, not its text.
    """
    filesystem, path = storage.filesystem_of(uri)
    try:
        file = filesystem.open_input_file(path)
    except OSError as error:
        raise StorageFaultError.of(uri, "opening", error) from error
    return pa.PythonFile(_GuardedFile(uri, file), mode="r")


def blocks_from(stream: pa.NativeFile, first_byte: int) -> Iterator[bytes]:
    """Blocks of an open file from a position to the end."""
    stream.seek(first_byte)
    while block := stream.read(BLOCK_BYTES):
        yield block


def unpacked_blocks(uri: str, codec: str) -> Iterator[bytes]:
    """Unpacked blocks of a packed file; several packed streams in a row count as one.

    Raises:
        UnreadableError: the archive is cut off or damaged; every byte before the damage has been yielded.
    """
    num_bytes = 0
    with open_file(uri) as packed, pa.CompressedInputStream(packed, codec) as stream:
        try:
            while block := stream.read(BLOCK_BYTES):
                yield block
                num_bytes += len(block)
            return
        except (OSError, pa.ArrowException) as error:
            cause = str(error)
    for block in _bytes_before_damage(uri, codec, num_bytes):
        yield block
        num_bytes += len(block)
    raise UnreadableError("truncated", f"unpacked {num_bytes} bytes, then: {cause}")


def _bytes_before_damage(uri: str, codec: str, first_byte: int) -> Iterator[bytes]:
    """The bytes between the last complete block and the damage: a failed read loses what it had unpacked so far."""
    with open_file(uri) as packed, pa.CompressedInputStream(packed, codec) as stream:
        for _ in range(first_byte // BLOCK_BYTES):
            stream.read(BLOCK_BYTES)
        found = bytearray()
        try:
            while byte := stream.read(1):
                found += byte
        except (OSError, pa.ArrowException):
            pass
        if found:
            yield bytes(found)
