"""Are the files of a corpus what they were when the job was planned? What they give is only then what the key says."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.shown_text import shown
from pipelines.reading.source import InputFile
from pipelines.reading.unpacking import StorageFaultError


def require_readable(files: Iterable[InputFile]) -> None:
    """Look whether local files may be read, before any is; a remote file system tells when it is asked for a file.

    Raises:
        InputError: one may not be read, or more.
    """
    refused = [file.uri for file in files if not file.problem and _is_refused(file.uri)]
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise InputError(
            f"documents.sources: {shown(refused[0])}: permission to read it is denied{more}; run `chmod +r`, or let "
            "inputs name other files"
        )


def require_unchanged(file: InputFile) -> None:
    """To be called when a file has been read.

    Raises:
        StorageFaultError: it is gone, or cannot be asked.
        InputError: its size or time is another than when the job was planned, so it is not known what was read.
    """
    filesystem, path = storage.filesystem_of(file.uri)
    try:
        info = filesystem.get_file_info(path)
    except OSError as error:
        raise StorageFaultError.of(file.uri, "asking for its size", error) from error
    if not info.is_file:
        raise StorageFaultError(f"{shown(file.uri)}: opening failed: no such file any more")
    # Readers that name files by their package (`modified_ns` = 0) do not go by the time.
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
