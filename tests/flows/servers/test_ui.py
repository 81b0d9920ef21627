"""Both real servers: they answer on loopback, and none of their processes outlives the command."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from flows import ui
from pipelines.contract.errors import InputError

AWKWARD_NAME = "a?b 50%20off #ü [1]"
"""Each of these characters means something in a URL."""


def fetch(url: str, host: str | None = None) -> str:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.status == 200
        return str(response.read().decode())


def status_of(url: str, host: str) -> int:
    try:
        fetch(url, host)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def modes_of(directory: Path) -> dict[str, str]:
    """The permissions of every database and log, with SQLite's side files."""
    found = [path for path in directory.rglob("*") if ".db" in path.suffix or path.suffix == ".log"]
    return {path.name: oct(path.stat().st_mode & 0o777) for path in found}


@pytest.mark.slow
def test_both_pages_are_served_and_sigterm_leaves_no_process(tmp_path: Path, repository: Path) -> None:
    workspace = tmp_path / AWKWARD_NAME
    (workspace / ui.PREFECT_HOME).mkdir(parents=True)
    (workspace / ui.MLFLOW_DATABASE).touch()  # SQLite takes an empty file for an empty database
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        command = [sys.executable, "-m", "flows.ui", str(workspace), "--mlflow-port", port, "--prefect-port", "0"]
        process = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        try:
            told = []
            for line in process.stdout:
                told.append(line)
                if line.startswith("Ctrl-C"):
                    break
            urls = dict(re.findall(r"^(MLflow|Prefect) +(http://127\.0\.0\.1:\d+\S*)$", "".join(told), re.MULTILINE))
            assert f"port {port} is in use" in "".join(told), told
            mlflow, _, view = urls["MLflow"].partition("/#/")
            assert view == "experiments/0/runs?workflowType=machine_learning"
            assert "MLflow" in fetch(mlflow)
            assert "Prefect" in fetch(urls["Prefect"])
            assert urls["Prefect"] in fetch(f"{urls['Prefect']}/ui-settings")
            check_hosts(mlflow, urls["Prefect"])
            children = psutil.Process(process.pid).children(recursive=True)
            assert len(children) >= 2
            check_listeners([process.pid, *(child.pid for child in children)])
            modes = modes_of(workspace)
            assert {"mlflow.db", "prefect.db", "prefect.db-wal", "ui-mlflow.log", "ui-prefect.log"} <= modes.keys()
            assert set(modes.values()) == {"0o600"}, modes
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0, output
    assert output.endswith("stopped\n")
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert os.listdir(tmp_path) == [AWKWARD_NAME], "a part of the name was taken for another place"


def check_hosts(mlflow: str, prefect: str) -> None:
    """Both refuse a foreign page whose name was rebound to loopback, but not the user's browser."""
    for url in (f"{mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0", f"{prefect}/api/admin/version"):
        port = url.split(":")[2].split("/")[0]
        assert status_of(url, f"localhost:{port}") == 200
        for forged in ("attacker.example", f"attacker.example:{port}", "127.0.0.1.attacker.example", "192.168.0.7"):
            assert status_of(url, forged) in (400, 403), (url, forged)


def check_listeners(pids: list[int]) -> None:
    listening = [
        connection.laddr.ip
        for pid in pids
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}


def test_a_directory_with_nothing_to_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="contains neither mlflow"):
        ui.main([str(tmp_path)])
    with pytest.raises(InputError, match="no such local directory"):
        ui.main([os.path.join(tmp_path, "nowhere")])
    with pytest.raises(InputError, match=r"s3://bucket/run: an object store holds no databases.*mlflow_tracking_uri"):
        ui.main(["s3://bucket/run"])
