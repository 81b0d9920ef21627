"""Copy one file from or to a store, verified."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord

_BLOCK_BYTES = 32 << 20
_ATTEMPTS = 3
_PROGRESS_SECONDS = 30.0


def download(uri: str, record: FileRecord, path: str) -> None:
    """Copy a file to a local path, and verify size and checksum of what was copied.

    What arrives damaged is copied again, in case only its transfer was at fault.

    Raises:
        InputError: the file is missing or damaged in the store.
        OSError: the store or the disk failed.
    """
    for _ in range(_ATTEMPTS):
        try:
            found = _copied(uri, record, path)
        except FileNotFoundError as error:
            raise InputError(
                f"{uri}: missing, though the manifest lists it; restore it, or build the stage again with --restart"
            ) from error
        if found == (record.size_bytes, record.sha256):
            return
    what = "its checksum is" if found[0] == record.size_bytes else f"its {found[0]:,} bytes are"
    raise InputError(f"{uri}: damaged ({what} not the manifest's); restore it, or build the stage again with --restart")


def _copied(uri: str, record: FileRecord, path: str) -> tuple[int, str]:
    """Copy a file; returns the size and the checksum of what arrived."""
    digest, size_bytes, shown_at = hashlib.sha256(), 0, time.monotonic()
    # The cache has created it with its final size, which others count.
    with open(path, "r+b" if os.path.exists(path) else "xb") as target, ThreadPoolExecutor(1) as hashing:
        for block in _blocks(uri):
            hashed = hashing.submit(digest.update, block)
            size_bytes += len(block)
            target.write(block)
            hashed.result()
            if time.monotonic() - shown_at > _PROGRESS_SECONDS:
                shown_at = time.monotonic()
                done, total = storage.in_units(size_bytes), storage.in_units(record.size_bytes)
                print(f"staging {uri}: {done} of {total}", file=sys.stderr, flush=True)
        target.truncate()
        target.flush()
        os.fsync(target.fileno())
    return size_bytes, digest.hexdigest()


def _blocks(uri: str) -> Iterator[bytes]:
    """The blocks of a file; the next one is read while one is used."""
    filesystem, remote = storage.filesystem_of(uri)
    with filesystem.open_input_stream(remote, compression=None) as source, ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(source.read, _BLOCK_BYTES)
        while block := following.result():
            following = ahead.submit(source.read, _BLOCK_BYTES)
            yield block


def upload(path: str, uri: str) -> None:
    """Copy a local file to a store; it appears there when it is complete.

    Raises:
        OSError: the store or the disk failed, or the store holds another size than was sent.
    """
    storage.copy_in(path, uri)
    size_bytes = os.stat(path).st_size
    if (stored := storage.file_size_bytes(uri)) != size_bytes:
        raise OSError(f"{uri}: the store holds {stored} bytes after {size_bytes} were sent")
