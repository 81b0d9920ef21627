"""Setting up a workspace's databases: killed, without disk space, damaged, or twice at once."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.support.faults.scale import rounds

from flows.servers.databases import BUILDING_SUFFIX, KEPT_SUFFIX
from flows.servers.mlflow_database import DATABASE_NAME, set_up_mlflow
from flows.servers.prefect_database import DATABASE_NAME as PREFECT_NAME
from flows.servers.prefect_database import set_up_prefect
from pipelines.contract.errors import InputError
from pipelines.inputs.registered_models import CACHE_VARIABLE

LONGEST_SECONDS = 120.0

# Imports first, so that the kill hits the set-up; it prints how long that took.
MLFLOW = """
import sys, time
import mlflow.store.tracking.sqlalchemy_store, mlflow.db
from flows.servers.mlflow_database import set_up_mlflow
print("begins", flush=True)
started = time.monotonic()
set_up_mlflow(sys.argv[1])
print(time.monotonic() - started, flush=True)
"""
PREFECT = """
import sys, time
import prefect.server.database.orm_models, prefect.server.database.alembic_commands
from flows.servers.prefect_database import set_up_prefect
print("begins", flush=True)
started = time.monotonic()
set_up_prefect(sys.argv[1])
print(time.monotonic() - started, flush=True)
"""
# As earlier versions did: MLflow creates its database at its final path.
IN_PLACE = """
import sys
import mlflow.store.tracking.sqlalchemy_store as store
print("begins", flush=True)
store.SqlAlchemyStore(f"sqlite:///{sys.argv[1]}/mlflow.db", sys.argv[1])
"""
PROGRAMS = {DATABASE_NAME: MLFLOW, PREFECT_NAME: PREFECT}
HERE: dict[str, Callable[[str], object]] = {DATABASE_NAME: set_up_mlflow, PREFECT_NAME: set_up_prefect}


@contextmanager
def started(program: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that has imported what it needs."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PREFECT_HOME": str(directory),
            # So that Prefect's database is created, not copied.
            CACHE_VARIABLE: str(directory / "cache"),
        },
    )
    try:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "begins\n":
            assert line, process.communicate()[1]
        yield process
    finally:
        process.kill()
        process.communicate()


def seconds_of(program: str, directory: Path) -> float:
    """Run a set-up to its end."""
    with started(program, directory) as process:
        output, errors = process.communicate(timeout=LONGEST_SECONDS)
        assert process.returncode == 0, errors
    return float(output.splitlines()[-1])


def tables_in(path: Path) -> set[str]:
    # Closed, so that SQLite removes its side files.
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PROGRAMS))
def test_a_set_up_that_is_killed_is_made_up_for(tmp_path: Path, name: str) -> None:
    whole_seconds = seconds_of(PROGRAMS[name], tmp_path / "whole")
    complete = tables_in(tmp_path / "whole" / name)
    drawn = random.Random(0)
    for index in range(rounds(2, 30)):
        directory = tmp_path / str(index)
        with started(PROGRAMS[name], directory) as process:
            # A shared machine is faster at one time than at another.
            time.sleep(drawn.uniform(0.0, 1.2 * whole_seconds))
            process.send_signal((signal.SIGKILL, signal.SIGINT)[index % 2])
            process.communicate(timeout=LONGEST_SECONDS)
        path = directory / name
        if path.exists():
            assert tables_in(path) == complete, "only a complete one has the name"
        HERE[name](str(directory))
        assert tables_in(path) == complete
        assert [file.name for file in directory.iterdir() if name in file.name] == [name], "something is left over"


@pytest.mark.slow
def test_a_database_that_an_earlier_version_left_half_made_is_replaced(tmp_path: Path) -> None:
    drawn, repaired = random.Random(1), 0
    for index in range(rounds(3, 30)):
        directory = tmp_path / str(index)
        directory.mkdir()
        path = directory / DATABASE_NAME
        with started(IN_PLACE, directory) as process:
            while not path.exists():
                time.sleep(0.01)
            time.sleep(drawn.uniform(0.0, 1.5))
            process.kill()
            process.wait()
        before = path.stat().st_ino
        client = MlflowClient(set_up_mlflow(str(directory)))
        assert client.create_run("0").info.run_id
        repaired += path.stat().st_ino != before
    assert repaired, "no kill came while the database was half-made"


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a complete database that holds a run."""
    directory = tmp_path_factory.mktemp("complete")
    MlflowClient(set_up_mlflow(str(directory))).create_run("0", run_name="precious")
    return directory


@pytest.fixture
def half_made(complete: Path, tmp_path: Path) -> Path:
    """A database with a run in which a migration has been interrupted, so that MLflow cannot go on."""
    path = tmp_path / DATABASE_NAME
    path.write_bytes((complete / DATABASE_NAME).read_bytes())
    with sqlite3.connect(path) as connection:
        # As far as the migration before the last two thirds says, with all that those have made.
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    return path


@pytest.mark.slow
def test_one_that_holds_runs_is_refused_and_not_changed(half_made: Path) -> None:
    before = half_made.read_bytes()
    with pytest.raises(InputError, match="the existing one was not changed"):
        set_up_mlflow(str(half_made.parent))
    assert half_made.read_bytes() == before
    assert not [path for path in half_made.parent.iterdir() if BUILDING_SUFFIX in path.name]


@pytest.mark.slow
def test_rows_that_a_migration_holds_in_between_count_as_runs(half_made: Path) -> None:
    with sqlite3.connect(half_made) as connection:
        connection.execute("ALTER TABLE runs RENAME TO _alembic_tmp_runs")
    before = half_made.read_bytes()
    with pytest.raises(InputError, match="was not changed"):
        set_up_mlflow(str(half_made.parent))
    assert half_made.read_bytes() == before


@pytest.mark.slow
def test_one_of_an_older_version_is_brought_up_to_date_beside(complete: Path, tmp_path: Path) -> None:
    """Its last migration is undone first, as the older version's schema was."""
    path = tmp_path / DATABASE_NAME
    path.write_bytes((complete / DATABASE_NAME).read_bytes())
    downgrade(path)
    before = tables_in(path)
    client = MlflowClient(set_up_mlflow(str(tmp_path)))
    assert [run.info.run_name for run in client.search_runs(["0"])] == ["precious"]
    assert tables_in(path) == tables_in(complete / DATABASE_NAME)
    assert tables_in(path.with_name(path.name + KEPT_SUFFIX)) == before
    assert oct(path.stat().st_mode & 0o777) == "0o600"


def downgrade(path: Path) -> None:
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(f"sqlite:///{path}")
    config = _get_alembic_config(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    engine.dispose()


@pytest.mark.parametrize("damage", [b"no database at all", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_is_refused_and_not_changed(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / DATABASE_NAME
    path.write_bytes(damage)
    with pytest.raises(InputError, match=r"mlflow\.db: MLflow's database is damaged"):
        set_up_mlflow(str(tmp_path))
    assert path.read_bytes() == damage


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PROGRAMS))
def test_no_room_is_told_in_a_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    """A limit on the size of files makes writes fail in the middle, as a full disk does."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, {resource.RLIM_INFINITY}))\n"
    program = (limited + PROGRAMS[name]).replace(
        "\nset_up_", "\nfrom pipelines.contract.errors import exit_code_of\nset_up_"
    )
    program = program.replace(
        "set_up_mlflow(sys.argv[1])", "sys.exit(exit_code_of(lambda: set_up_mlflow(sys.argv[1])))"
    )
    program = program.replace(
        "set_up_prefect(sys.argv[1])", "sys.exit(exit_code_of(lambda: set_up_prefect(sys.argv[1])))"
    )
    for _ in range(2):
        with started(program, tmp_path) as process:
            _, errors = process.communicate(timeout=LONGEST_SECONDS)
        assert process.returncode == 2, errors
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, errors
        assert "Traceback" not in errors
        assert f"{tmp_path}/{name}" in lines[0]
        assert "nothing was left behind" in lines[0]
        assert not [path for path in tmp_path.iterdir() if name in path.name]
    seconds_of(PROGRAMS[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PROGRAMS))
def test_two_at_once_make_one_database(tmp_path: Path, name: str) -> None:
    with started(PROGRAMS[name], tmp_path) as first, started(PROGRAMS[name], tmp_path) as second:
        for process in (first, second):
            _, errors = process.communicate(timeout=LONGEST_SECONDS)
            assert process.returncode == 0, errors
    assert [path.name for path in tmp_path.iterdir() if name in path.name] == [name]


@pytest.mark.slow
def test_a_set_up_waits_for_a_lock_and_names_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.servers.databases.LOCK_SECONDS", 0.5)
    holder = (
        "import sys, time\nfrom pipelines.results.locks import workspace_lock\n"
        "with workspace_lock(sys.argv[1], 'mlflow.db'):\n    print('begins', flush=True)\n    time.sleep(600)\n"
    )
    with started(holder, tmp_path) as process:
        with pytest.raises(InputError, match=f"process {process.pid} on "):
            set_up_mlflow(str(tmp_path))
        process.kill()
        process.wait()
        assert set_up_mlflow(str(tmp_path)), "the lock ends with its holder"


def test_an_interrupt_during_the_set_up_is_no_damaged_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlflow.store.db.utils.create_sqlalchemy_engine_with_retry", interrupted)
    with pytest.raises(KeyboardInterrupt):
        set_up_mlflow(str(tmp_path))
    assert not (tmp_path / DATABASE_NAME).exists()
