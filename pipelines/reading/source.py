"""Input and output types of the readers of input formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pipelines.settings.documents import SourceConfig


@dataclass(frozen=True)
class Reject:
    """A record that became no document: a reason, which is counted, and a detail to look up."""

    source: str
    reason: str
    detail: str


@dataclass(frozen=True)
class InputFile:
    """One file to read, or its records that begin at `first_byte` or later and before `end_byte`.

    `name` is its label in the `source` column: stable, without paths of this machine. A file that matches but cannot
    be read (its name is not UTF-8, a link leads nowhere) has a `problem`, which is its only record.
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
        """Whether the range holds the file's first byte; only such a range rejects the complete file."""
        return self.first_byte == 0 and self.end_byte != 0


@dataclass(frozen=True)
class RawDocument:
    """The text of one document as in its source; a blank line separates paragraphs.

    Where `has_ready_sentences`, each paragraph is one sentence that the source has already split off.
    """

    source: str
    text: str
    has_ready_sentences: bool = False


class Source(Protocol):
    """A reader of one input format."""

    def find(self, config: SourceConfig, workspace: str | None = None) -> list[InputFile]:
        """The files that the recipe names, in a stable order, without those in the run's workspace.

        Raises:
            InputError: an input names nothing, or the files lack the field that the recipe names.
        """

    def read(self, file: InputFile, config: SourceConfig) -> Iterator[RawDocument | Reject]:
        """Read one file or range; an unreadable record is a `Reject`, never an exception.

        Ranges that cover a file without overlap together give what the complete file gives, wherever it is cut.
        """
