"""Check that the files of a corpus have not changed since the job was planned: the stage key depends on it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown
from pipelines.reading.source import InputFile
from pipelines.reading.unpacking import StorageFaultError


def require_readable(files: Iterable[InputFile]) -> None:
    """Check that local files are readable before any is read; remote file systems report it when a file is opened.

    Raises:
        InputError: at least one may not be read.
    """
    refused = [file.uri for file in files if not file.problem and _is_refused(file.uri)]
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise InputError(
            f"documents.sources: {shown(refused[0])}: permission to read it is denied{more}; run `chmod +r`, or "
            "point inputs at other files"
        )


def require_unchanged(file: InputFile) -> None:
    """Check a file after it was read.

    Raises:
        StorageFaultError: it is gone, or its size cannot be read.
        InputError: its size or time differs from that at planning, so it is unknown what was read.
    """
    filesystem, path = storage.filesystem_of(file.uri)
    try:
        info = filesystem.get_file_info(path)
    except OSError as error:
        raise StorageFaultError.of(file.uri, "reading its size", error) from error
    if not info.is_file:
        raise StorageFaultError(f"{shown(file.uri)}: opening failed: no such file any more")
    # Readers that name files by their package (`modified_ns` = 0) do not compare times.
    if info.size != file.size_bytes or (file.modified_ns and (info.mtime_ns or 0) != file.modified_ns):
        raise InputError(
            f"{shown(file.uri)}: changed while the corpus was read ({file.size_bytes} bytes at the start, {info.size} "
            "now, or another time); run the same command again when nothing writes to it any more"
        )


def _is_refused(uri: str) -> bool:
    if not storage.is_local(uri):
        return False
    path = storage.local_path(uri)
    return os.path.exists(path) and not os.access(path, os.R_OK)
