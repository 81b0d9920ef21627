"""The other entry points without their images: MLflow answers, and unsafe settings are refused before any start."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.support import REPOSITORY

ENTRY_POINTS = REPOSITORY / "infra" / "docker" / "entrypoints"
HEALTH = REPOSITORY / "infra" / "docker" / "health.py"
PROGRAMS = os.path.dirname(sys.executable)


def environment(**more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))}
    return {**inherited, "PATH": PROGRAMS + os.pathsep + os.environ.get("PATH", os.defpath), **more}


def health(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(HEALTH), *arguments], capture_output=True, text=True, check=False)


def run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(ENTRY_POINTS / script), *arguments]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mlflow_answers_on_loopback_from_sqlite_and_a_folder(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = environment(DATA_DIRECTORY=str(tmp_path), MLFLOW_PORT=str(port), MLFLOW_WORKERS="1")
    with (tmp_path / "output").open("wb") as output:
        server = subprocess.Popen([str(ENTRY_POINTS / "mlflow.sh")], env=variables, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        while health("url", f"{url}/health").returncode:
            assert server.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.2)
        body = b'{"name": "one"}'
        request = urllib.request.Request(
            f"{url}/api/2.0/mlflow/experiments/create", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert b"experiment_id" in answer.read()
        foreign = urllib.request.Request(request.full_url, body, {**request.headers, "Host": "elsewhere.example"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(foreign, timeout=60)
        assert refused.value.code == 403
        assert (tmp_path / "mlflow.db").exists()
    finally:
        server.terminate()
        server.wait()
    assert health("url", f"{url}/health").returncode == 1


@pytest.mark.parametrize(
    ("script", "variables", "told"),
    [
        ("mlflow.sh", {"MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2://me:word@host/mlflow"}, "PGPASSWORD"),
        ("prefect_server.sh", {"PREFECT_SERVER_API_HOST": "0.0.0.0"}, "PREFECT_SERVER_API_AUTH_STRING"),
        (
            "prefect_server.sh",
            {"PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://me:word@host/prefect"},
            "PGPASSWORD",
        ),
        ("worker.sh", {}, "PREFECT_API_URL"),
        ("pipelines.sh", {}, "JOB RECIPE"),
    ],
)
def test_what_is_unsafe_or_missing_is_refused(script: str, variables: dict[str, str], told: str) -> None:
    result = run(script, **variables)
    assert result.returncode == 2
    assert told in result.stderr
    assert "word" not in result.stderr.replace("password", "")


@pytest.mark.slow
def test_jobs_are_started_by_name() -> None:
    assert "recipe" in run("pipelines.sh", "shard_corpus", "--help").stdout
    unknown = run("pipelines.sh", "shard_corpora", "recipe.toml")
    assert unknown.returncode == 2
    assert "no such job" in unknown.stderr


@pytest.mark.slow
def test_worker_asks_prefect_for_options_that_it_has(tmp_path: Path) -> None:
    started = run("worker.sh", "--help", PREFECT_API_URL="http://127.0.0.1:9/api", PREFECT_HOME=str(tmp_path))
    assert started.returncode == 0, started.stderr
    source = (ENTRY_POINTS / "worker.sh").read_text()
    options = {word for word in source.split("exec prefect")[1].split() if word.startswith("--")}
    assert len(options) == 5
    assert all(option in started.stdout for option in options)


def test_health_tells_writing_and_progress(tmp_path: Path) -> None:
    assert health("writable", str(tmp_path)).returncode == 0
    assert health("writable", str(tmp_path / "absent")).returncode == 1
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    os.utime(old, (1, 1))
    assert health("progress", str(old), str(new)).returncode == 1
    new.touch()
    assert health("progress", str(old), str(new)).returncode == 0
    assert health("progress", str(tmp_path / "absent")).returncode == 1


def test_up_writes_passwords_once_and_for_the_owner_only(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").write_text('#!/bin/sh\necho "$@"\n')
    (programs / "docker").chmod(0o755)
    file = tmp_path / ".env"
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    command = [str(REPOSITORY / "infra" / "compose" / "up.sh"), "--detach"]
    contents = []
    for _ in range(2):
        result = subprocess.run(
            command, env=environment(PATH=path, ENV_FILE=str(file)), capture_output=True, text=True, check=True
        )
        contents.append(file.read_text())
        assert result.stdout.splitlines()[-1].endswith("up --build --detach")
        assert contents[0].split("=")[1].split()[0] not in result.stdout
    assert contents[0] == contents[1]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    example = (REPOSITORY / "infra" / "compose" / "env.example").read_text()
    names = [line.split("=")[0] for line in example.splitlines() if not line.startswith("#")]
    assert [line.split("=")[0] for line in contents[0].splitlines()] == names
    assert all(len(line.split("=")[1]) >= 20 for line in contents[0].splitlines())
