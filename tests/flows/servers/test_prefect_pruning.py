"""Old runs are removed from a private server's database; the newest and those that have not ended are kept."""

from __future__ import annotations

import sqlite3
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.servers import prefect_database
from flows.servers.prefect_database import DATABASE_NAME, prune, set_up_prefect

NOW = datetime.now(UTC)


def insert(connection: sqlite3.Connection, table: str, **values: object) -> str:
    """A row with the other columns that the table's schema requires."""
    given = {"id": str(uuid.uuid4()), "created": shown(NOW), "updated": shown(NOW), **values}
    for _, name, kind, not_null, default, _ in connection.execute(f"PRAGMA table_info({table})").fetchall():
        if not_null and default is None and name not in given:
            given[name] = "{}" if kind == "JSON" else 0 if kind in ("INTEGER", "FLOAT", "BOOLEAN") else "x"
    columns, marks = ", ".join(f'"{name}"' for name in given), ", ".join("?" * len(given))
    statement = f"INSERT INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608  # names of this test
    connection.execute(statement, tuple(given.values()))
    return str(given["id"])


def shown(moment: datetime) -> str:
    return moment.replace(tzinfo=None).strftime("%Y-%m-%d %H:%M:%S.%f")


def add_run(connection: sqlite3.Connection, flow: str, state: str, days: float, within: str | None = None) -> str:
    """A run that ended some days ago, with a task run, a log line and an artifact."""
    ended = shown(NOW - timedelta(days=days)) if state not in ("RUNNING", "PAUSED") else None
    started = shown(NOW - timedelta(days=days, hours=1))
    run = insert(
        connection,
        "flow_run",
        flow_id=flow,
        name="run",
        state_type=state,
        start_time=started,
        end_time=ended,
        parent_task_run_id=within,
    )
    insert(connection, "task_run", flow_run_id=run, name="task", state_type=state)
    insert(connection, "log", flow_run_id=run, message="line", timestamp=started, level=20)
    insert(connection, "artifact", flow_run_id=run, key=f"key-{run}", data='"' + "x" * 200_000 + '"', type="markdown")
    return run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    set_up_prefect(str(tmp_path))
    return tmp_path


def ids(home: Path, table: str, column: str) -> set[str]:
    with sqlite3.connect(home / DATABASE_NAME) as connection:
        query = f"SELECT {column} FROM {table}"  # noqa: S608  # names of this test
        return {found for (found,) in connection.execute(query)}


@pytest.mark.slow
def test_the_oldest_finished_runs_go_with_all_that_is_theirs(home: Path) -> None:
    with sqlite3.connect(home / DATABASE_NAME) as connection:
        flow = insert(connection, "flow", name="end-to-end")
        old = [add_run(connection, flow, "COMPLETED", 50.0 + day) for day in range(60)]
        (task,) = connection.execute("SELECT id FROM task_run WHERE flow_run_id = ?", (old[0],)).fetchone()
        nested = add_run(connection, flow, "COMPLETED", 51.0, within=task)
        unfinished = [add_run(connection, flow, state, 400.0) for state in ("RUNNING", "PAUSED")]
        kept = [add_run(connection, flow, state, 1.0 + day) for day, state in enumerate(("FAILED", "CRASHED"))]
    size_bytes = (home / DATABASE_NAME).stat().st_size
    assert prune(str(home), kept=2) == 60 + 1 - 1
    left = {*unfinished, *kept}
    assert ids(home, "flow_run", "id") == left
    for table in ("task_run", "log", "artifact"):
        assert ids(home, table, "flow_run_id") == left, table
    assert nested not in left
    assert (home / DATABASE_NAME).stat().st_size < size_bytes / 4, "the file has not become smaller"
    assert prune(str(home), kept=2) == 0


@pytest.mark.slow
def test_few_or_young_runs_stay(home: Path) -> None:
    with sqlite3.connect(home / DATABASE_NAME) as connection:
        flow = insert(connection, "flow", name="end-to-end")
        runs = {add_run(connection, flow, "COMPLETED", age / 24) for age in (0.1, 0.2, 0.3)}
    assert prune(str(home), kept=3) == 0
    assert prune(str(home), kept=1) == 0, "younger than two hours"
    assert ids(home, "flow_run", "id") == runs
    assert prefect_database.KEPT_FLOW_RUNS >= 20
