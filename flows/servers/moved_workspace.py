"""Detect a workspace that was moved or copied, and update the addresses in its MLflow database.

MLflow stores the absolute address of each artifact directory. After a move these point to the old path: models do
not load, and new runs would create that path again, or write into the workspace that this one was copied from.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from flows.console.narration import LOGGER_NAME
from flows.servers.databases import LOCK_SECONDS, copy_database, opened, tables_of
from flows.servers.mlflow_database import ARTIFACTS_NAME, DATABASE_NAME, database_path
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.results.locks import workspace_lock

KEPT_SUFFIX = ".before-move"

ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)
"""Tables and columns in which MLflow stores the addresses of artifacts."""


class Change(NamedTuple):
    """One address in the database, and its replacement."""

    table: str
    column: str
    old: str
    new: str


def relocate(workspace: str) -> bool:
    """Point the MLflow database of a local workspace to the artifacts next to it; returns whether anything changed.

    All addresses change in one transaction, after a copy of the database. Addresses outside a workspace's
    `mlartifacts/` are kept.

    Raises:
        InputError: the artifacts were not moved with the workspace, or the database is in use; nothing was changed.
    """
    path = database_path(workspace)
    directory = os.path.dirname(path)
    if not _foreign_roots(path, directory):
        return False
    with workspace_lock(directory, DATABASE_NAME, wait_seconds=LOCK_SECONDS):
        roots = _foreign_roots(path, directory)
        if not roots:
            return False
        copy_database(path, path + KEPT_SUFFIX)
        try:
            with opened(path) as connection:
                _rewrite(connection, directory, roots)
        except sqlite3.Error as error:
            raise InputError(
                f"{path}: names artifacts in {', '.join(roots)} and cannot be changed ({error}); stop the program "
                "that uses it, then run the command again"
            ) from error
    logging.getLogger(LOGGER_NAME).warning(
        "%s",
        f"{workspace} was moved or copied from {' and '.join(os.path.dirname(root) for root in roots)}: the "
        f"addresses in {DATABASE_NAME} were updated; the old database is kept as {DATABASE_NAME}{KEPT_SUFFIX}",
    )
    return True


def _rewrite(connection: sqlite3.Connection, directory: str, roots: list[str]) -> None:
    # sqlite3 would start the transaction only with the first change, after reading the values that it depends on.
    connection.isolation_level = None
    connection.execute("BEGIN IMMEDIATE")
    try:
        changes = list(_changes(connection, directory, roots))
        _require_brought(changes, directory)
        for change in changes:
            column = change.column
            statement = f'UPDATE "{change.table}" SET "{column}" = ? WHERE "{column}" = ?'  # noqa: S608  # ADDRESSES
            connection.execute(statement, (change.new, change.old))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def local_path_of(address: str) -> str | None:
    """The path of an address as MLflow reads it, which also decodes plain paths; None for other schemes."""
    parts = urlsplit(address)
    if address.startswith("/"):
        return unquote(address)
    return unquote(parts.path) if parts.scheme == "file" and not parts.netloc else None


def _foreign_roots(database: str, directory: str) -> list[str]:
    """Artifact directories named in the database other than the one next to it."""
    with opened(database) as connection:
        found = [address for (address,) in connection.execute("SELECT artifact_location FROM experiments") if address]
    roots = set()
    for path in filter(None, map(local_path_of, found)):
        # The default experiment has a subfolder.
        for candidate in (path, os.path.dirname(path)):
            if os.path.basename(candidate) == ARTIFACTS_NAME:
                roots.add(candidate)
    own = os.path.realpath(os.path.join(directory, ARTIFACTS_NAME))
    if any(os.path.realpath(root) == own for root in roots):
        # Some experiment is here: others are elsewhere because a user put them there.
        return []
    return sorted(roots)


def _changes(connection: sqlite3.Connection, directory: str, roots: list[str]) -> Iterator[Change]:
    tables = tables_of(connection)
    for table, column in ADDRESSES:
        if table not in tables:
            continue
        query = f'SELECT DISTINCT "{column}" FROM "{table}"'  # noqa: S608  # ADDRESSES
        for (address,) in connection.execute(query).fetchall():
            path = local_path_of(address) if address else None
            for root in roots:
                if path is not None and (path == root or path.startswith(root + "/")):
                    place = Path(directory, ARTIFACTS_NAME, os.path.relpath(path, root))
                    yield Change(table, column, address, place.as_uri())


def _require_brought(changes: list[Change], directory: str) -> None:
    for change in changes:
        old, new = local_path_of(change.old), local_path_of(change.new)
        if old and new and os.path.isdir(old) and not os.path.isdir(new) and os.listdir(old):
            raise InputError(
                f"{storage.join(directory, DATABASE_NAME)}: its artifacts are in {old}, and {new} is missing; move "
                f"{ARTIFACTS_NAME}/ here too, then run the command again"
            )
