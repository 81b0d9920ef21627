"""Expected SHA-256 of each downloaded file: published, given by the user, or recorded at the first download."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from training.glue.archives import Source


@dataclass
class Checksums:
    """Expected SHA-256 of each downloaded file, and the source of the value.

    given: the user's values by file name; None uses the published ones. recorded: values of earlier downloads, stored
    next to the archives in the format of `sha256sum -c`.
    """

    path: str
    recorded: dict[str, str]
    given: dict[str, str] | None
    given_path: str

    @classmethod
    def open(cls, path: str, given_path: str | None) -> Checksums:
        """Read the values recorded at `path`, if any, and those given in a file of the same format.

        Raises:
            InputError: a file is missing or is not in sha256sum's format.
        """
        recorded = read_checksums(path) if os.path.exists(path) else {}
        return cls(path, recorded, read_checksums(given_path) if given_path else None, given_path or "")

    def expected(self, source: Source) -> tuple[str | None, str]:
        """The expected value, None if there is none, and its source in words."""
        if self.given is None:
            return source.sha256, "the published checksum"
        if source.name in self.given:
            return self.given[source.name], f"the checksum in {self.given_path}"
        return self.recorded.get(source.name), f"the checksum recorded in {self.path}"

    def is_vouched_for(self, source: Source) -> bool:
        """Whether the expected value was published or given, not only recorded at the first download."""
        return self.given is None or source.name in self.given

    def record(self, source: Source, sha256: str) -> None:
        if self.recorded.get(source.name) != sha256:
            self.recorded[source.name] = sha256
            lines = [f"{value}  {name}\n" for name, value in sorted(self.recorded.items())]
            storage.write_bytes(self.path, "".join(lines).encode())


def read_checksums(path: str) -> dict[str, str]:
    """Values of a file in sha256sum's format, by file name.

    Raises:
        InputError: it is missing, or a line is not a checksum and a name.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            lines = stream.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of checksums ({error})") from error
    values = {}
    for number, line in enumerate(lines, start=1):
        value, _, name = line.partition(" ")
        if len(value) != 64 or set(value) - set("0123456789abcdef") or not name.strip():
            raise InputError(f"{path}:{number}: expected a SHA-256 of 64 digits, two spaces and a file name")
        values[name.lstrip(" *")] = value
    return values
