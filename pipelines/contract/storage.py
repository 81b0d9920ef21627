"""Read and write workspace files, locally or on any file system that Arrow knows (s3://, gs://, az://, hdfs://).

A file under its final name is always complete: it is written under a temporary name and renamed, or to a store that
shows an object when its last byte has arrived. Stores that fail for minutes are waited for (`pipelines.stores`).
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from pyarrow import fs

from pipelines.contract.errors import InputError, writing
from pipelines.stores.opening import handler_of, open_store
from pipelines.stores.patient_filesystem import TEMPORARY_SUFFIX as TEMPORARY_SUFFIX
from pipelines.stores.patient_filesystem import spool

_HASH_BLOCK_BYTES = 1 << 20


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
        return fs.FileSystem.from_uri(uri) if uri.startswith("file://") else open_store(uri)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{uri}: not a path that Arrow can open ({error}); use a local path, s3://, gs://, az:// or hdfs://"
        ) from error


def is_local(uri: str) -> bool:
    """Whether a path or URI is local, by its name alone: querying a bucket would need the network."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> str:
    """The plain path behind a local URI, for libraries that memory-map or write themselves."""
    filesystem, path = filesystem_of(uri)
    assert isinstance(filesystem, fs.LocalFileSystem), uri
    return path


def file_size_bytes(uri: str) -> int | None:
    """Size of a file, or None if there is no such file."""
    filesystem, path = filesystem_of(uri)
    info = filesystem.get_file_info(path)
    return int(info.size) if info.type == fs.FileType.File else None


def modified_ns(uri: str) -> int | None:
    """When a file was written, in nanoseconds since 1970 by the clock of its store; None if there is no such file."""
    filesystem, path = filesystem_of(uri)
    info = filesystem.get_file_info(path)
    return int(info.mtime_ns or 0) if info.type == fs.FileType.File else None


def read_bytes(uri: str) -> bytes:
    filesystem, path = filesystem_of(uri)
    with filesystem.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())


def open_seekable(uri: str) -> pa.NativeFile:
    """Open a file for reading at any position: memory-mapped where it is local, by ranged requests elsewhere."""
    filesystem, path = filesystem_of(uri)
    return pa.memory_map(path) if isinstance(filesystem, fs.LocalFileSystem) else filesystem.open_input_file(path)


def list_files(uri: str) -> list[str]:
    """Names of all files below a directory, relative to it and sorted; empty if the directory is absent."""
    filesystem, path = filesystem_of(uri)
    selector = fs.FileSelector(path, allow_not_found=True, recursive=True)
    prefix = path.rstrip("/") + "/"
    return sorted(
        info.path.removeprefix(prefix) for info in filesystem.get_file_info(selector) if info.type == fs.FileType.File
    )


def remove_file(uri: str) -> None:
    """Delete a file, if it exists."""
    filesystem, path = filesystem_of(uri)
    if filesystem.get_file_info(path).type == fs.FileType.File:
        filesystem.delete_file(path)


def remove_directory(uri: str) -> None:
    """Delete a directory and its contents, if it exists."""
    filesystem, path = filesystem_of(uri)
    if filesystem.get_file_info(path).type != fs.FileType.Directory:
        return
    if not isinstance(filesystem, fs.LocalFileSystem):
        # Stores over a disk delete a directory's marker only once it is empty.
        found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        for info in sorted(found, key=lambda info: info.path, reverse=True):
            if info.type == fs.FileType.File:
                filesystem.delete_file(info.path)
            elif filesystem.get_file_info(info.path).type == fs.FileType.Directory:
                filesystem.delete_dir(info.path)
        if filesystem.get_file_info(path).type != fs.FileType.Directory:
            return
    filesystem.delete_dir(path)


def make_directory(path: str) -> None:
    """Create a local directory and its parents, if they do not exist.

    Raises:
        InputError: it cannot be created.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise  # a full disk is not a wrong path
        raise InputError(f"{path}: cannot create this directory ({error.strerror}); choose another path") from error


def list_directories(uri: str) -> list[str]:
    """Names of the directories directly below a directory, sorted; empty if it is absent."""
    filesystem, path = filesystem_of(uri)
    selector = fs.FileSelector(path, allow_not_found=True)
    return sorted(info.base_name for info in filesystem.get_file_info(selector) if info.type == fs.FileType.Directory)


def move_directory(source: str, target: str) -> None:
    """Rename a directory to a name that does not exist, on one file system.

    Object stores cannot rename a directory: its files are moved one by one there, in name order.
    """
    filesystem, source_path = filesystem_of(source)
    _, target_path = filesystem_of(target)
    if isinstance(filesystem, fs.LocalFileSystem):
        os.rename(source_path, target_path)
        flush_to_disk(os.path.dirname(target_path))
        return
    for name in list_files(source):
        move_file(join(source, name), join(target, name))
    remove_directory(source)


def move_file(source: str, target: str) -> None:
    """Rename one file on one file system; its new directory is created if it is missing."""
    filesystem, source_path = filesystem_of(source)
    _, target_path = filesystem_of(target)
    filesystem.create_dir(target_path.rpartition("/")[0], recursive=True)
    filesystem.move(source_path, target_path)


def copy_file(source: str, target: str) -> None:
    """Copy one file on one file system, within the store; its new directory is created if it is missing."""
    filesystem, source_path = filesystem_of(source)
    _, target_path = filesystem_of(target)
    filesystem.create_dir(target_path.rpartition("/")[0], recursive=True)
    filesystem.copy_file(source_path, target_path)


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def exchange_directories(first: str, second: str) -> bool:
    """Exchange the names of two local directories in one step; False if the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    names = [os.fsencode(local_path(uri)) for uri in (first, second)]
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        flush_to_disk(os.path.dirname(local_path(first)))
        return True
    number = ctypes.get_errno()
    # The file system or the kernel does not support the flag.
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), local_path(second))


def require_free_space(directory: str, needed_bytes: float, purpose: str) -> None:
    """Check that a local file system has enough space; a remote one is not checked.

    Args:
        directory: where the files will be written; it may not exist yet.
        needed_bytes: an estimate.
        purpose: what needs the space, such as `checkpoints and encoder`.

    Raises:
        InputError: there is less space than that.
    """
    if not is_local(directory):
        return
    existing = local_path(directory)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise InputError(
            f"{directory}: {purpose} will take about {in_units(needed_bytes)}, and {in_units(free_bytes)} are free; "
            "free space there or choose another workspace"
        )


def in_units(num_bytes: float) -> str:
    """A size in readable units: `312 bytes`, `4.2 MB`, `1.3 TB`."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        num_bytes /= 1000
        if num_bytes < 1000:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 1000:,.1f} TB"


@contextmanager
def atomic_output(uri: str) -> Iterator[pa.NativeFile]:
    """Open a file for writing that appears under its name only when the block ends without an error."""
    filesystem, path = filesystem_of(uri)
    if (store := handler_of(filesystem)) is not None:
        # Kept on the local disk until it is complete, so that an upload can be repeated.
        with spool() as kept:
            yield pa.PythonFile(kept, mode="w")
            store.put(path, kept)
        return
    local = isinstance(filesystem, fs.LocalFileSystem)
    if local:
        make_directory(os.path.dirname(path))
    temporary = f"{path}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        with writing(uri):
            with filesystem.open_output_stream(temporary, compression=None) as stream:
                yield stream
            if local:
                flush_to_disk(temporary)
            filesystem.move(temporary, path)
    except BaseException:
        if filesystem.get_file_info(temporary).type == fs.FileType.File:
            filesystem.delete_file(temporary)
        raise


def copy_in(source: str, uri: str) -> None:
    """Copy a local file to a URI, where it appears when it is complete."""
    filesystem, path = filesystem_of(uri)
    store = handler_of(filesystem)
    with open(source, "rb") as stream:
        if store is not None:
            store.put(path, stream)
            return
        with atomic_output(uri) as target:
            while block := stream.read(_HASH_BLOCK_BYTES):
                target.write(block)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a complete file atomically."""
    with writing(uri, len(data)), atomic_output(uri) as stream:
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
    """Flush a local file, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
