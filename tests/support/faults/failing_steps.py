"""Steps of a pipeline that fail in each way; a separate module, because worker processes import it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam

from pipelines.contract.recipe_text import RecipeError


class DieByNumber(beam.DoFn):
    """Ends its worker by SIGKILL, at most `times` times over all workers; then passes its elements on."""

    def __init__(self, notes: str, times: int):
        self._notes, self._times = Path(notes), times

    def process(self, element: int) -> Iterator[int]:
        (self._notes / f"{element}-{os.getpid()}").touch()
        for number in range(self._times):
            try:
                (self._notes / f"death-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        (self._notes / f"done-{element}").touch()
        yield element


class Refuse(beam.DoFn):
    """Meets a user error while it handles another exception."""

    def process(self, element: int) -> Iterator[int]:
        yield element
        try:
            raise KeyError(element)
        except KeyError as error:
            raise RecipeError(f"corpus.txt: row {element} has [no text]; name another column") from error


class FailToRead(beam.DoFn):
    """Opens a file that does not exist."""

    def __init__(self, path: str, notes: str):
        self._path, self._notes = path, Path(notes)

    def process(self, element: int) -> Iterator[int]:
        (self._notes / f"attempt-{os.getpid()}").touch()
        open(self._path, "rb").close()
        yield element


class FailForAWhile(beam.DoFn):
    """Meets a network drive that answers from the third attempt on."""

    def __init__(self, notes: str):
        self._notes = Path(notes)

    def process(self, element: int) -> Iterator[int]:
        attempts = len(list(self._notes.glob("attempt-*")))
        if attempts < 2:
            (self._notes / f"attempt-{attempts}").touch()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/drive/shard")
        yield element


class Blunder(beam.DoFn):
    """A fault of the program."""

    def process(self, element: int) -> Iterator[float]:
        yield element / 0
