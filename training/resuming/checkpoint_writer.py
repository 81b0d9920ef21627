"""Writes one rank's files of a checkpoint, optionally in a thread, so that training does not wait for the disk.

DeepSpeed 0.19.8 has a decoupled writer of its own. It requires a compiled asynchronous-I/O operator and a second
process per writer, silently drops a checkpoint when that process has died, and never calls fsync. So DeepSpeed
only gathers the state here; it is copied to main memory, and a thread writes it.
"""

from __future__ import annotations

import copy
import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from pipelines.contract.errors import first_cause, writing

_POLL_SECONDS = 0.02
_WRITING, _WRITTEN, _FAILED = ".writing", ".written", ".failed-"
"""Suffixes of the marks by which ranks notify rank 0 through the checkpoint's directory, which they share. A mark is
created before the first byte and then only renamed, which works on a full disk; `.failed-28` has the errno."""


class CheckpointWriter:
    """The writer of one rank; writes one checkpoint at a time."""

    def __init__(self, rank: int, world_size: int, in_background: bool) -> None:
        self._rank, self._world_size, self._in_background = rank, world_size, in_background
        self._files: list[tuple[Any, str]] = []
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def take(self, state_dict: Any, path: str) -> None:
        """Queue the content of a file; the caller may change its tensors as soon as this returns."""
        self._files.append((snapshot(state_dict, {}) if self._in_background else state_dict, path))

    def start(self, directory: str, finish: Callable[[], None]) -> None:
        """Write the queued files below `directory`; on rank 0 `finish` runs once every rank has written its own.

        Without a background thread the caller's tensors are written directly, before this returns.

        Raises:
            OSError: no file can be created in the directory.
        """
        mark = self._path_of_mark(directory, _WRITING)
        with writing(mark), open(mark, "x"):
            pass
        files, self._files = self._files, []
        self._start(self._work, files, directory, finish)
        if not self._in_background:
            self.join()

    def start_alone(self, finish: Callable[[], None]) -> None:
        """Write the queued files to a directory of this rank's own; `finish` runs then, on every rank.

        Without a background thread the files are written before this returns, but `finish` may still run.

        Raises:
            OSError: a file could not be written; only without a background thread.
        """
        files, self._files = self._files, []
        if not self._in_background:
            _save_all(files)
        self._start(self._work_alone, files, finish)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        assert self._thread is None
        self._thread = threading.Thread(target=work, args=arguments, name="checkpoint")
        self._thread.daemon = True
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether files are being written, or `finish` runs."""
        return self._thread is not None and self._thread.is_alive()

    def join(self, timeout_seconds: float | None = None) -> None:
        """Wait until the writer is not busy, or for this long."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def wait(self) -> None:
        """Wait for the files being written.

        Raises:
            OSError: they could not be written, here or on another rank; also any error raised by `finish`.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self, files: list[tuple[Any, str]], directory: str, finish: Callable[[], None]) -> None:
        try:
            try:
                _save_all(files)
            except Exception as error:
                number = error.errno if isinstance(error, OSError) else None
                self._mark(directory, f"{_FAILED}{number or errno.EIO}")
                raise
            self._mark(directory, _WRITTEN)
            if self._rank == 0:
                self._wait_for_others(directory)
                finish()
        except Exception as error:  # noqa: BLE001 - passed to the waiting thread, which raises it
            self._error = error

    def _work_alone(self, files: list[tuple[Any, str]], finish: Callable[[], None]) -> None:
        try:
            _save_all(files)
            finish()
        except Exception as error:  # noqa: BLE001 - passed to the waiting thread, which raises it
            self._error = error

    def _mark(self, directory: str, end: str) -> None:
        os.rename(self._path_of_mark(directory, _WRITING), self._path_of_mark(directory, end))

    def _path_of_mark(self, directory: str, end: str) -> str:
        return os.path.join(directory, f"rank{self._rank:05d}{end}")

    def _wait_for_others(self, directory: str) -> None:
        while True:
            names = os.listdir(directory)
            if failed := next((name for name in names if _FAILED in name), None):
                rank, _, number = failed.partition(_FAILED)
                raise OSError(int(number), os.strerror(int(number)), os.path.join(directory, rank))
            marks = [name for name in names if name.endswith(_WRITTEN)]
            if len(marks) == self._world_size:
                break
            time.sleep(_POLL_SECONDS)
        for name in marks:
            os.remove(os.path.join(directory, name))


def _save_all(files: list[tuple[Any, str]]) -> None:
    """Write files, and release the memory of each."""
    while files:
        state, path = files.pop()
        _save(state, path)
        del state


def _save(state: Any, path: str) -> None:
    """Write one file and flush it to disk.

    Raises:
        OSError: it could not be written; the error names the path.
    """
    try:
        with open(path, "wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except Exception as error:
        # torch wraps the operating system's error in a RuntimeError about positions in a file.
        cause = first_cause(error)
        if not isinstance(cause, OSError):
            raise
        with writing(path, size_bytes(state, {})):
            raise OSError(cause.errno or errno.EIO, cause.strerror or str(cause), cause.filename or path) from error


def size_bytes(value: Any, storages: dict[int, int]) -> int:
    """Bytes of all tensors in a state; shared memory is counted once.

    Args:
        value: as for `snapshot`.
        storages: memory counted so far, by address; initially empty.
    """
    if isinstance(value, torch.Tensor):
        memory = value.untyped_storage()
        storages[memory.data_ptr()] = memory.nbytes()
    elif isinstance(value, dict):
        for item in value.values():
            size_bytes(item, storages)
    elif isinstance(value, list | tuple):
        for item in value:
            size_bytes(item, storages)
    return sum(storages.values())


def snapshot(value: Any, copies: dict[Any, torch.Tensor]) -> Any:
    """A deep copy with all tensors in main memory; tensors with identical storage still share it.

    Args:
        value: dictionaries, lists and tuples of tensors and of small objects.
        copies: tensors copied so far, by address; initially empty.
    """
    if isinstance(value, torch.Tensor):
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if place not in copies or not value.numel():
            copies[place] = value.detach().to("cpu", copy=True)
        return copies[place]
    if isinstance(value, dict):
        copied = copy.copy(value)
        for key, item in value.items():
            copied[key] = snapshot(item, copies)
        return copied
    if type(value) in (list, tuple):
        return type(value)(snapshot(item, copies) for item in value)
    return copy.deepcopy(value)
