"""Writes one rank's files of a checkpoint, in a thread where training shall not wait for the disk.

DeepSpeed 0.19.8 has a decoupled writer of its own. It needs an asynchronous-I/O operator to be compiled and a second
process per writer, drops a checkpoint in silence when that process has died, and knows no fsync. So DeepSpeed
only gathers the state here; it is copied to main memory, and a thread writes it.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

_POLL_SECONDS = 0.02
_WRITTEN, _FAILED = ".written", ".failed"
"""Ends of the marks by which ranks tell rank 0 through the checkpoint's directory; it is shared by all of them."""


class CheckpointWriter:
    """The writer of one rank; one checkpoint at a time."""

    def __init__(self, rank: int, world_size: int, in_background: bool) -> None:
        self._rank, self._world_size, self._in_background = rank, world_size, in_background
        self._files: list[tuple[Any, str]] = []
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def take(self, state_dict: Any, path: str) -> None:
        """Accept the content of a file; the caller may change its tensors as soon as this returns."""
        self._files.append((snapshot(state_dict, {}) if self._in_background else state_dict, path))

    def start(self, directory: str, finish: Callable[[], None]) -> None:
        """Write the accepted files below `directory`; on rank 0 `finish` runs once every rank has written its own.

        Without a background the caller's tensors are written themselves, and all is done when this returns.
        """
        assert self._thread is None
        files, self._files = self._files, []
        self._thread = threading.Thread(target=self._work, args=(files, directory, finish), name="checkpoint")
        self._thread.daemon = True
        self._thread.start()
        if not self._in_background:
            self._thread.join()

    def wait(self) -> None:
        """Wait for the files that are under way.

        Raises:
            OSError: they could not be written, here or on another rank; or whatever else `finish` raised.
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
                while files:
                    state, path = files.pop()
                    # Given a path, torch.save turns a full disk into a RuntimeError about positions in a file.
                    with open(path, "wb") as stream:
                        torch.save(state, stream)
                        stream.flush()
                        os.fsync(stream.fileno())
                    del state
            except Exception:
                self._mark(directory, _FAILED)
                raise
            self._mark(directory, _WRITTEN)
            if self._rank == 0:
                self._wait_for_others(directory)
                finish()
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits, which raises it
            self._error = error

    def _mark(self, directory: str, end: str) -> None:
        with open(os.path.join(directory, f"rank{self._rank:05d}{end}"), "x"):
            pass

    def _wait_for_others(self, directory: str) -> None:
        while True:
            names = os.listdir(directory)
            if failed := [name for name in names if name.endswith(_FAILED)]:
                raise OSError(f"{directory}: {failed[0].removesuffix(_FAILED)} could not write its part")
            marks = [name for name in names if name.endswith(_WRITTEN)]
            if len(marks) == self._world_size:
                break
            time.sleep(_POLL_SECONDS)
        for name in marks:
            os.remove(os.path.join(directory, name))


def snapshot(value: Any, copies: dict[Any, torch.Tensor]) -> Any:
    """A deep copy with all tensors in main memory; tensors that share their storage in full still do.

    Args:
        value: dictionaries, lists and tuples of tensors and of small objects.
        copies: tensors copied so far, by where they lie; empty at first.
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
