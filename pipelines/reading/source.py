"""What a reader of an input format is given, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pipelines.settings.documents import SourceConfig


@dataclass(frozen=True)
class Reject:
    """A record that became no document: a reason that is counted, and a detail for the person who looks it up."""

    source: str
    reason: str
    detail: str


@dataclass(frozen=True)
class InputFile:
    """One file to read, or the records of it that begin from `first_byte` on and before `end_byte`.

    `name` is its label in the `source` column: stable, and free of this machine's paths. A file that the inputs name
    but that cannot be read (its name is no UTF-8, a link leads nowhere) has a `problem`, which is its only record.
    """

    uri: str
    name: str
    size_bytes: int
    modified_ns: int
    first_byte: int = 0
    end_byte: int | None = None
    problem: Reject | None = None

    @property
    def range_bytes(self) -> int:
        return (self.size_bytes if self.end_byte is None else self.end_byte) - self.first_byte

    @property
    def begins_file(self) -> bool:
        """Does the range hold the file's first byte? Only such a range rejects the file as a whole."""
        return self.first_byte == 0 and self.end_byte != 0


@dataclass(frozen=True)
class RawDocument:
    """The text of one document as its source has it; a blank line separates paragraphs.

    Where `has_ready_sentences`, each paragraph is one sentence that the source has already split off.
    """

    source: str
    text: str
    has_ready_sentences: bool = False


class Source(Protocol):
    """A reader of one input format."""

    def find(self, config: SourceConfig, workspace: str | None = None) -> list[InputFile]:
        """The files that the recipe names, in a stable order; the run's workspace is left out where it lies among them.

        Raises:
            InputError: an input names nothing, or the files lack the field that the recipe names.
        """

    def read(self, file: InputFile, config: SourceConfig) -> Iterator[RawDocument | Reject]:
        """Read one file or range; a record that cannot be read is a `Reject`, never an exception.

        Ranges that cover a file without overlap give together what the whole file gives, wherever they are cut.
        """
