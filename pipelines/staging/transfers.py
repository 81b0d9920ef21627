"""Copy one file from or to a store, verified."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import FileRecord

_BLOCK_BYTES = 8 << 20


def download(uri: str, record: FileRecord, path: str) -> None:
    """Copy a file to a local path, and verify size and checksum of what was copied.

    Raises:
        InputError: the file is missing or damaged in the store.
        OSError: the store or the disk failed.
    """
    filesystem, remote = storage.filesystem_of(uri)
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with filesystem.open_input_stream(remote, compression=None) as source, open(path, "wb") as target:
            while block := source.read(_BLOCK_BYTES):
                digest.update(block)
                size_bytes += len(block)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
    except FileNotFoundError as error:
        raise InputError(
            f"{uri}: missing, though the manifest lists it; restore it, or build the stage again with --restart"
        ) from error
    if size_bytes != record.size_bytes or digest.hexdigest() != record.sha256:
        raise InputError(
            f"{uri}: damaged (its checksum is not the manifest's); restore it, or build the stage again with --restart"
        )


def upload(path: str, uri: str) -> None:
    """Copy a local file to a store; it appears there when it is complete.

    Raises:
        OSError: the store or the disk failed, or the store holds another size than was sent.
    """
    with storage.atomic_output(uri) as target, open(path, "rb") as source:
        copy_blocks(source.read, target.write)
    size_bytes = os.stat(path).st_size
    if (stored := storage.file_size_bytes(uri)) != size_bytes:
        raise OSError(f"{uri}: the store holds {stored} bytes after {size_bytes} were sent")


def copy_blocks(read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
    while block := read(_BLOCK_BYTES):
        write(block)
