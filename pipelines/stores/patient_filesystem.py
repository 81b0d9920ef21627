"""An Arrow file system over that of a store: every request is repeated with patience, and objects appear complete."""

from __future__ import annotations

import contextlib
import ctypes
import io
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
from pyarrow import fs

from pipelines.stores.patience import Patience

TEMPORARY_SUFFIX = ".tmp"
"""Ends the name of a file that is still being written."""
BLOCK_BYTES = 10 << 20
"""Arrow's size of a part of an upload: a stream that is given blocks of it keeps none of them."""
_AHEAD_BYTES = 4 << 20
_IN_MEMORY_BYTES = 16 << 20
_MOST_LEVELS = 16


@dataclass(frozen=True)
class StoreWays:
    """What a kind of store can do with one request."""

    replaces_whole: bool
    """An object appears when its last byte is stored, and until then the earlier one is read."""
    most_copied_bytes: int
    """The store copies no larger object; Arrow's file systems know no other way."""


class PatientHandler(fs.FileSystemHandler):
    """The requests of a file system, repeated while the store fails."""

    def __init__(self, store: str, connect: Callable[[], fs.FileSystem], ways: StoreWays):
        """
        Args:
            store: its name for messages, such as `s3://bucket`.
            connect: makes the file system, with the present credentials.
            ways: of this kind of store.
        """
        self._connect, self._scheme = connect, store.partition("://")[0]
        self.base = connect()
        self.ways = ways
        root = store.partition("://")[2]
        self._patience = Patience(store, self._renew, lambda: self.base.get_file_info(fs.FileSelector(root)))

    def _renew(self) -> None:
        self.base = self._connect()

    def call(self, path: str, request: Callable[[fs.FileSystem], Any]) -> Any:
        """The result of a request about a path."""
        return self._patience.call(f"{self._scheme}://{path}", lambda: request(self.base))

    def put(self, path: str, source: IO[bytes] | io.RawIOBase) -> None:
        """Store a file from its beginning; it appears complete or not at all. A failed attempt is repeated.

        Nothing else writes to a store. Where objects are not replaced whole, they are written under a temporary name;
        those that such a store cannot copy from there are empty until they are complete.
        """
        is_direct = self.ways.replaces_whole or source.seek(0, io.SEEK_END) > self.ways.most_copied_bytes
        first = path if is_direct else f"{path}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"

        def attempt(base: fs.FileSystem) -> None:
            source.seek(0)
            with _completed(base, first) as target:
                while block := source.read(BLOCK_BYTES):
                    target.write(block)

        try:
            self.call(path, attempt)
            if first != path:
                self.move(first, path)
        except BaseException:
            if first != path and self.base.get_file_info(first).type == fs.FileType.File:
                self.base.delete_file(first)
            raise

    def get_type_name(self) -> str:
        return f"patient+{self._scheme}"

    def normalize_path(self, path: str) -> str:
        return str(self.base.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return list(self.call(paths[0] if paths else "", lambda base: base.get_file_info(paths)))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return list(self.call(selector.base_dir, lambda base: base.get_file_info(selector)))

    def create_dir(self, path: str, recursive: bool) -> None:
        self.call(path, lambda base: base.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._delete(path, lambda base: _delete_from_below(base, path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.call(path, lambda base: base.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("nothing deletes the contents of all buckets")

    def delete_file(self, path: str) -> None:
        self._delete(path, lambda base: base.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        if self._is_too_large_to_copy(src):
            self.copy_file(src, dest)
            self.delete_file(src)
            return
        attempts = 0

        def attempt(base: fs.FileSystem) -> None:
            nonlocal attempts
            attempts += 1
            try:
                _moved(base, src, dest)
            except FileNotFoundError:
                # The answer of an attempt that moved it was lost.
                if attempts == 1 or base.get_file_info(dest).type != fs.FileType.File:
                    raise

        self.call(src, attempt)

    def copy_file(self, src: str, dest: str) -> None:
        if self._is_too_large_to_copy(src):
            with _Reader(self, src, BLOCK_BYTES) as source:
                self.put(dest, source)
            return
        self.call(src, lambda base: base.copy_file(src, dest))

    def _is_too_large_to_copy(self, path: str) -> bool:
        return int(self.call(path, lambda base: base.get_file_info(path)).size or 0) > self.ways.most_copied_bytes

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_Reader(self, path, _AHEAD_BYTES), mode="r")

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_Reader(self, path, 0), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError(f"{path}: a stream that ends early would leave half an object; use put")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError(f"{path}: objects cannot be appended to")

    def _delete(self, path: str, request: Callable[[fs.FileSystem], None]) -> None:
        attempts = 0

        def attempt(base: fs.FileSystem) -> None:
            nonlocal attempts
            attempts += 1
            try:
                request(base)
            except FileNotFoundError:
                if attempts == 1:
                    raise

        self.call(path, attempt)


@contextlib.contextmanager
def _completed(base: fs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """A stream to an object that appears when the block ends without an error, and not otherwise."""
    stream = base.open_output_stream(path, compression=None)
    try:
        yield stream
        stream.close()
    except BaseException:
        # Arrow stores what a stream has received as the object when it is closed or freed, and cannot abandon an
        # upload. So this stream is never freed; it holds no block.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
        raise


def _moved(base: fs.FileSystem, src: str, dest: str) -> None:
    try:
        base.move(src, dest)
    except NotImplementedError:
        # Azure without a hierarchical namespace.
        base.copy_file(src, dest)
        base.delete_file(src)


def _delete_from_below(base: fs.FileSystem, path: str) -> None:
    """Delete a directory; a store over a real file system refuses markers of directories that are not empty yet."""
    for _ in range(_MOST_LEVELS):
        try:
            base.delete_dir(path)
            return
        except FileNotFoundError:
            raise
        except OSError as error:
            if "not empty" not in str(error):
                raise
        if base.get_file_info(path).type == fs.FileType.NotFound:
            return
    base.delete_dir(path)


class _Reader(io.RawIOBase):
    """An object, opened again where a connection was cut."""

    def __init__(self, handler: PatientHandler, path: str, ahead_bytes: int):
        super().__init__()
        self._handler, self._path, self._ahead_bytes = handler, path, ahead_bytes
        opened: tuple[pa.NativeFile, int] = handler.call(path, self._opened)
        self._file, self._size = opened
        self._connection = handler.base
        self._block_start, self._block = 0, b""
        self._position: int = 0

    def read(self, size: int = -1) -> bytes:
        size = self._size - self._position if size is None or size < 0 else min(size, self._size - self._position)
        if size <= 0:
            return b""
        offset = self._position - self._block_start
        if not 0 <= offset <= offset + size <= len(self._block):
            wanted = min(max(size, self._ahead_bytes), self._size - self._position)
            self._block = self._handler.call(self._path, lambda base: self._fetched(base, wanted))
            self._block_start, offset = self._position, 0
        self._position += size
        return self._block if (offset, size) == (0, len(self._block)) else self._block[offset : offset + size]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _opened(self, base: fs.FileSystem) -> tuple[pa.NativeFile, int]:
        file = base.open_input_file(self._path)
        return file, int(file.size())

    def _fetched(self, base: fs.FileSystem, wanted: int) -> bytes:
        if base is not self._connection:
            self._file, self._connection = base.open_input_file(self._path), base
        data = bytes(self._file.read_at(wanted, self._position))
        if len(data) != wanted:
            raise OSError(f"{self._path}: unexpected end of stream, {len(data)} of {wanted} bytes")
        return data


def spool() -> IO[bytes]:
    """A temporary file, in memory while it is small."""
    return tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)
