"""Read and write workspace files, locally or on any file system that Arrow knows (s3://, gs://, hdfs://).

Every file of a workspace is written under a temporary name and renamed when whole, so that a name that exists is a
file that is complete.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from pyarrow import fs

from pipelines.recipe import InputError

_HASH_BLOCK_BYTES = 1 << 20

TEMPORARY_SUFFIX = ".tmp"
"""Ends the name of a file that is still being written."""


def join(uri: str, *parts: str) -> str:
    """Join path components with `/`, which local paths and object-store URIs share."""
    return "/".join([uri.rstrip("/") or "/", *parts])


def filesystem_of(uri: str) -> tuple[fs.FileSystem, str]:
    """Resolve a path or URI to an Arrow file system and the path inside it.

    Raises:
        InputError: the scheme is not one that Arrow reads.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), os.path.abspath(uri)
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{uri}: not a path that Arrow can open ({error}); use a local path, s3://, gs:// or hdfs://"
        ) from error
    return filesystem, path


def is_local(uri: str) -> bool:
    """Tells from the name alone: asking a bucket would take the network."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> str:
    """The plain path behind a local URI, for libraries that memory-map or write themselves."""
    filesystem, path = filesystem_of(uri)
    assert isinstance(filesystem, fs.LocalFileSystem), uri
    return path


def file_size_bytes(uri: str) -> int | None:
    """Size of a file, or None where there is no such file."""
    filesystem, path = filesystem_of(uri)
    info = filesystem.get_file_info(path)
    return int(info.size) if info.type == fs.FileType.File else None


def read_bytes(uri: str) -> bytes:
    filesystem, path = filesystem_of(uri)
    with filesystem.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())


def list_files(uri: str) -> list[str]:
    """Names of all files below a directory, relative to it and sorted; empty where the directory is absent."""
    filesystem, path = filesystem_of(uri)
    selector = fs.FileSelector(path, allow_not_found=True, recursive=True)
    prefix = path.rstrip("/") + "/"
    return sorted(
        info.path.removeprefix(prefix) for info in filesystem.get_file_info(selector) if info.type == fs.FileType.File
    )


def remove_file(uri: str) -> None:
    """Delete a file; one that is already gone is fine."""
    filesystem, path = filesystem_of(uri)
    if filesystem.get_file_info(path).type == fs.FileType.File:
        filesystem.delete_file(path)


def remove_directory(uri: str) -> None:
    """Delete a directory with all it holds; one that is already gone is fine."""
    filesystem, path = filesystem_of(uri)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def make_directory(path: str) -> None:
    """Make a local directory with its parents; one that is there already is fine.

    Raises:
        InputError: it cannot be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made a directory ({error.strerror}); name another place") from error


@contextmanager
def atomic_output(uri: str) -> Iterator[pa.NativeFile]:
    """Open a file for writing that appears under its name only when the block ends without an error."""
    filesystem, path = filesystem_of(uri)
    local = isinstance(filesystem, fs.LocalFileSystem)
    if local:
        make_directory(os.path.dirname(path))
    temporary = f"{path}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        with filesystem.open_output_stream(temporary, compression=None) as stream:
            yield stream
        if local:
            flush_to_disk(temporary)
        filesystem.move(temporary, path)
    except BaseException:
        if filesystem.get_file_info(temporary).type == fs.FileType.File:
            filesystem.delete_file(temporary)
        raise


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_output(uri) as stream:
        stream.write(data)


def sha256_of(uri: str) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read as a stream."""
    filesystem, path = filesystem_of(uri)
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path, compression=None) as stream:
        while block := stream.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def flush_to_disk(path: str) -> None:
    """Have the kernel write a local file, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
