"""An empty Prefect database, kept in the user's cache for the next workspace: its migrations take five seconds."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from importlib.metadata import version

from flows.servers.databases import back_up, opened, remove_side_files
from pipelines.inputs.registered_models import CACHE_VARIABLE, cache_directory

_FOLDER = "databases"


def kept_path() -> str:
    """Where the empty database of the installed Prefect is kept."""
    return os.path.join(cache_directory(), _FOLDER, f"prefect-{version('prefect')}.db")


def take_kept(path: str, is_current: Callable[[sqlite3.Connection], bool]) -> bool:
    """Copy the kept database over an empty file; False if there is none that is complete, and the file stays empty."""
    try:
        shutil.copyfile(kept_path(), path)
        with opened(path) as connection:
            is_sound = connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
            if is_sound and is_current(connection):
                return True
    except (OSError, sqlite3.DatabaseError) as error:
        if not isinstance(error, FileNotFoundError):
            print(f"{kept_path()}: not used: {error}", flush=True)
    remove_side_files(path)
    os.truncate(path, 0)
    return False


def keep(path: str) -> None:
    """Keep a copy of a database without any run, as far as the cache can be written."""
    target = kept_path()
    if os.environ.get(CACHE_VARIABLE) and not os.path.isdir(cache_directory()):
        # It may be for several users; the server creates what only its own may read.
        return
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=os.path.dirname(target)) as folder:
            temporary = os.path.join(folder, "empty.db")
            back_up(path, temporary)
            os.replace(temporary, target)
    except (OSError, sqlite3.Error) as error:
        print(f"{target}: the empty database is not kept: {error}", flush=True)
