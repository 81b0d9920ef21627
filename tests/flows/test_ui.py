"""Both servers for real: they answer on loopback, and nothing of them outlives the command."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from flows import ui
from pipelines.recipe import InputError


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:
        assert response.status == 200
        return str(response.read().decode())


def test_both_pages_are_served_and_sigterm_leaves_no_process(tmp_path: Path, repository: Path) -> None:
    (tmp_path / ui.MLFLOW_DATABASE).touch()  # SQLite takes an empty file for an empty database
    (tmp_path / ui.PREFECT_HOME).mkdir()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        command = [sys.executable, "-m", "flows.ui", str(tmp_path), "--mlflow-port", port, "--prefect-port", "0"]
        process = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        try:
            told = []
            for line in process.stdout:
                told.append(line)
                if line.startswith("Ctrl-C"):
                    break
            urls = dict(re.findall(r"^(MLflow|Prefect) +(http://127\.0\.0\.1:\d+)$", "".join(told), re.MULTILINE))
            assert f"port {port} is in use" in "".join(told), told
            assert "MLflow" in fetch(urls["MLflow"])
            assert "Prefect" in fetch(urls["Prefect"])
            assert urls["Prefect"] in fetch(f"{urls['Prefect']}/ui-settings")
            children = psutil.Process(process.pid).children(recursive=True)
            assert len(children) >= 2
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0, output
    assert output.endswith("stopped\n")
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_directory_with_nothing_to_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither mlflow"):
        ui.main([str(tmp_path)])
    with pytest.raises(InputError, match="no such local directory"):
        ui.main([os.path.join(tmp_path, "nowhere")])
