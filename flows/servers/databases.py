"""SQLite databases of a workspace: created next to their final path and renamed when complete, never migrated in place.

MLflow and Prefect create and migrate a database in place, in many steps. A process that is killed in between
leaves one that neither opens again. So a new or outdated database is prepared as `<name>.building`, and renamed only
when it is complete.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from flows.console.narration import LOGGER_NAME
from flows.servers.private_files import create_private
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.results.locks import workspace_lock

BUILDING_SUFFIX = ".building"
KEPT_SUFFIX = ".before-upgrade"
LOCK_SECONDS = 120.0
"""Another process may be creating the same database: a new one takes some seconds, migrating a large one takes more."""

_SIDE_SUFFIXES = ("-journal", "-wal", "-shm")
_BUSY_SECONDS = 20.0
_BATCH_TABLE = "_alembic_tmp_{name}"
"""Table in which a migration stores rows while it replaces a table."""


@dataclass(frozen=True)
class Database:
    """Description of a database.

    Attributes:
        path: of its file.
        owner: the program whose database it is.
        holdings: tables with user data; a broken database without rows in them is replaced.
        is_current: whether the schema is complete and the installed version's.
        migrate: creates the database at a path, or migrates the existing one.
    """

    path: str
    owner: str
    holdings: tuple[str, ...]
    is_current: Callable[[sqlite3.Connection], bool]
    migrate: Callable[[str], None]


def sqlite_url(path: str, driver: str = "") -> str:
    """The SQLAlchemy URL of a database file.

    SQLAlchemy uses a path unchanged, up to a question mark; with one, it needs SQLite's own URI, which is quoted.
    MLflow would create a directory with that URI's name, unless the URL names the driver.
    """
    if "?" not in path:
        return f"sqlite{'+' + driver if driver else ''}:///{path}"
    return f"sqlite+{driver or 'pysqlite'}:///file:{quote(path)}?uri=true"


def set_up(database: Database) -> None:
    """Make sure that a complete, current database exists at its path.

    Raises:
        InputError: it has data and is damaged, or it cannot be created; nothing was changed. Or another process
            has been setting it up for too long.
    """
    path = database.path
    if os.path.exists(path) and _is_ready(database):
        return
    with workspace_lock(os.path.dirname(path), os.path.basename(path), wait_seconds=LOCK_SECONDS):
        if not os.path.exists(path):
            _build(database, copy=False)
        elif not _is_ready(database):
            _replace(database)


def copy_database(source: str, target: str) -> None:
    """Copy a database consistently while others may be using it; the copy is synced to disk."""
    temporary = source + BUILDING_SUFFIX if target != source + BUILDING_SUFFIX else target
    back_up(source, temporary)
    if temporary != target:
        _rename(temporary, target)


def back_up(source: str, target: str) -> None:
    """As `copy_database`, but over the target itself: a process that is killed leaves a part of it."""
    _remove(target)
    create_private(target)
    with opened(source) as original, closing(sqlite3.connect(target)) as copied:
        original.backup(copied)
    storage.flush_to_disk(target)


def remove_side_files(path: str) -> None:
    """Remove what SQLite has left next to a database, such as a journal that it would apply to another file."""
    for suffix in _SIDE_SUFFIXES:
        _remove_file(path + suffix)


@contextmanager
def opened(path: str) -> Iterator[sqlite3.Connection]:
    """A connection to an existing database; `sqlite3` alone would create an empty file for a missing one."""
    with closing(sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=_BUSY_SECONDS)) as connection:
        yield connection


def tables_of(connection: sqlite3.Connection) -> set[str]:
    """Names of the tables of a database."""
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def revision_of(connection: sqlite3.Connection) -> str | None:
    """The schema's revision as recorded by Alembic; None if there is none."""
    if "alembic_version" not in tables_of(connection):
        return None
    found = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    return str(found[0][0]) if len(found) == 1 else None


def _is_ready(database: Database) -> bool:
    with _readable(database) as connection:
        return database.is_current(connection)


@contextmanager
def _readable(database: Database) -> Iterator[sqlite3.Connection]:
    try:
        with opened(database.path) as connection:
            yield connection
    except sqlite3.OperationalError as error:
        raise InputError(
            f"{database.path}: {database.owner}'s database cannot be read ({error}); stop the program that uses "
            "it, or check its permissions"
        ) from error
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{database.path}: {database.owner}'s database is damaged ({error}) and was not changed; restore a "
            "copy, or move it away to start with a new one"
        ) from error


def _replace(database: Database) -> None:
    """Replace a database that is incomplete or of an older version."""
    path = database.path
    held = _held(database)
    if held is None:
        _build(database, copy=False)
        _say(f"{path}: was incomplete and empty; {database.owner}'s database was created again")
        return
    _build(database, copy=True, keep=path + KEPT_SUFFIX)
    _say(f"{path}: migrated to the installed {database.owner}; the old one is {os.path.basename(path)}{KEPT_SUFFIX}")


def _held(database: Database) -> str | None:
    """A table of a database with data that must not be lost; None if there is none."""
    with _readable(database) as connection:
        tables = tables_of(connection)
        for name in database.holdings:
            for table in (name, _BATCH_TABLE.format(name=name)):
                if table not in tables:
                    continue
                query = f'SELECT 1 FROM "{table}" LIMIT 1'  # noqa: S608  # a name of this package's
                if connection.execute(query).fetchone():
                    return name
    return None


def _build(database: Database, copy: bool, keep: str | None = None) -> None:
    """Prepare a database and rename it to its path; an existing one is kept until then, and also if that fails."""
    path, temporary = database.path, database.path + BUILDING_SUFFIX
    storage.make_directory(os.path.dirname(path))
    try:
        if keep is not None:
            copy_database(path, keep)
        if copy:
            copy_database(path, temporary)
        else:
            _remove(temporary)
            create_private(temporary)
        database.migrate(temporary)
        with opened(temporary) as connection:
            if not database.is_current(connection):
                raise InputError(f"{path}: {database.owner} has not completed its database")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        storage.flush_to_disk(temporary)
        _rename(temporary, path)
    except Exception as error:
        _remove(temporary)
        if isinstance(error, InputError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        kept = "the existing one was not changed" if os.path.exists(path) else "nothing was left behind"
        raise InputError(
            f"{path}: {database.owner}'s database cannot be created ({reason}); {kept}; free disk space or check its "
            "permissions, then run the command again"
        ) from error


def _rename(temporary: str, path: str) -> None:
    remove_side_files(path)
    os.replace(temporary, path)
    storage.flush_to_disk(os.path.dirname(path))


def _remove(path: str) -> None:
    _remove_file(path)
    remove_side_files(path)


def _remove_file(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)


def _say(line: str) -> None:
    logging.getLogger(LOGGER_NAME).warning("%s", line)
