"""Files that only their owner may read: logs and databases contain paths, settings and lines of a corpus."""

from __future__ import annotations

import os
from typing import IO, Any

PRIVATE_MODE = 0o600
PRIVATE_UMASK = 0o077
"""For a process that writes such files only."""


def create_private(path: str) -> None:
    """Create an empty file that only its owner may read.

    Raises:
        FileExistsError: the file exists.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE))


def open_private(path: str, mode: str) -> IO[Any]:
    """Open a file as `open` does; a new file may be read by its owner only."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, PRIVATE_MODE)

    return open(path, mode, opener=opener)
