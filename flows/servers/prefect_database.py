"""Prefect's SQLite database of a private server: set-up and pruning."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from datetime import UTC, datetime
from functools import cache

from flows.servers.databases import Database, opened, revision_of, set_up, sqlite_url, tables_of
from flows.servers.kept_database import keep, take_kept
from pipelines.contract.errors import InputError

DATABASE_NAME = "prefect.db"
DRIVER = "aiosqlite"
HOLDINGS = ("flow_run", "deployment", "block_document", "variable")
KEPT_FLOW_RUNS = 50
"""Finished flow runs that are kept, not counting runs within other flows; each takes some 0.6 MB."""
LEAST_AGE_SECONDS = 2 * 3600.0
"""Prefect removes nothing younger than an hour."""
WORTHWHILE_FREE_BYTES = 8 << 20
"""Free bytes from which the file is compacted, to return the space to the disk."""

_NEWEST_SUPERFLUOUS = """
    SELECT end_time FROM flow_run
    WHERE parent_task_run_id IS NULL AND end_time IS NOT NULL
        AND state_type IN ('COMPLETED', 'FAILED', 'CRASHED', 'CANCELLED')
    ORDER BY end_time DESC LIMIT 1 OFFSET ?
"""


def database_url(home: str) -> str:
    """The URL of the database of the server whose PREFECT_HOME this is."""
    return sqlite_url(os.path.join(home, DATABASE_NAME), DRIVER)


def set_up_prefect(home: str) -> None:
    """Make sure that `home` has a complete Prefect database.

    Must be called in the server's own process, before the server: Prefect keeps the first database that it is given.

    Raises:
        InputError: it cannot be created, or has runs and is damaged; see `flows.servers.databases.set_up`.
    """
    set_up(Database(os.path.join(home, DATABASE_NAME), "Prefect", HOLDINGS, _is_current, _migrate))


def prune(home: str, kept: int = KEPT_FLOW_RUNS) -> int:
    """Remove the oldest finished flow runs, with all their data; returns how many were removed.

    Prefect itself removes them, by age: the newest `kept` finished runs are kept, and all that have not ended.
    """
    path = os.path.join(home, DATABASE_NAME)
    cutoff = _end_of_newest_superfluous(path, kept)
    if cutoff is None:
        return 0
    if (datetime.now(UTC) - cutoff).total_seconds() < LEAST_AGE_SECONDS:
        return 0
    before = _count(path)
    asyncio.run(_vacuum(database_url(home), cutoff))
    _shrink(path)
    return before - _count(path)


def _is_current(connection: sqlite3.Connection) -> bool:
    return "flow_run" in tables_of(connection) and revision_of(connection) == _newest_revision()


@cache
def _newest_revision() -> str | None:
    from alembic.script import ScriptDirectory
    from prefect.server.database.alembic_commands import alembic_config
    from prefect.server.database.orm_models import AioSqliteORMConfiguration

    config = alembic_config()
    config.set_main_option("version_locations", str(AioSqliteORMConfiguration().versions_dir).replace("%", "%%"))
    return ScriptDirectory.from_config(config).get_current_head()


def _migrate(path: str) -> None:
    is_new = not os.path.getsize(path)
    if is_new and take_kept(path, _is_current):
        return
    _create(path)
    if is_new:
        keep(path)


def _create(path: str) -> None:
    from prefect.server.database.configurations import AioSqliteConfiguration
    from prefect.server.database.dependencies import provide_database_interface, temporary_database_config

    async def create() -> None:
        database = provide_database_interface()
        try:
            await database.create_db()
        finally:
            # An open connection would keep SQLite from emptying the write-ahead log before the file gets its name.
            await (await database.engine()).dispose()

    with temporary_database_config(AioSqliteConfiguration(connection_url=sqlite_url(path, DRIVER))):
        asyncio.run(create())


def _end_of_newest_superfluous(path: str, kept: int) -> datetime | None:
    """End time of the newest superfluous run; None if there is none."""
    try:
        with opened(path) as connection:
            found = connection.execute(_NEWEST_SUPERFLUOUS, (kept,)).fetchone()
    except sqlite3.Error as error:
        raise InputError(
            f"{path}: Prefect's database cannot be read ({error}); move it away to start with a new one"
        ) from error
    return datetime.fromisoformat(found[0]).replace(tzinfo=UTC) if found else None


def _count(path: str) -> int:
    with opened(path) as connection:
        return int(connection.execute("SELECT count(*) FROM flow_run WHERE parent_task_run_id IS NULL").fetchone()[0])


async def _vacuum(url: str, cutoff: datetime) -> None:
    from prefect.server.database.configurations import AioSqliteConfiguration
    from prefect.server.database.dependencies import provide_database_interface, temporary_database_config
    from prefect.server.services import db_vacuum
    from prefect.settings import PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD, temporary_settings

    # Prefect reads its clock later, so a run that ended at the cutoff is older than this by then.
    retention_seconds = (datetime.now(UTC) - cutoff).total_seconds()
    with (
        temporary_settings({PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD: retention_seconds}),
        temporary_database_config(AioSqliteConfiguration(connection_url=url)),
    ):
        database = provide_database_interface()
        try:
            await db_vacuum.vacuum_old_flow_runs(db=database)
            await db_vacuum.vacuum_orphaned_logs(db=database)
            await db_vacuum.vacuum_orphaned_artifacts(db=database)
            await db_vacuum.vacuum_stale_artifact_collections(db=database)
        finally:
            await (await database.engine()).dispose()


def _shrink(path: str) -> None:
    with opened(path) as connection:
        free = connection.execute("PRAGMA freelist_count").fetchone()[0]
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
        if free * page_bytes >= WORTHWHILE_FREE_BYTES:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
