"""A real MLflow server that tests kill and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SERVER_SECONDS = 120.0


class Server:
    """`mlflow server` on its own port, to be stopped and started again over the same SQLite file.

    artifacts: options for the place of artifacts; None keeps them in the directory.
    """

    def __init__(self, directory: Path, artifacts: list[str] | None = None) -> None:
        self._directory = directory
        self._artifacts = artifacts or ["--artifacts-destination", str(directory)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self._port}"
        self.store_uri = f"sqlite:///{directory}/mlflow.db"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.store_uri, "--workers", "1"]
        command += [*self._artifacts, "--host", "127.0.0.1", "--port", str(self._port)]
        with open(self._directory / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._directory,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + SERVER_SECONDS
        while not self._answers():
            assert time.monotonic() < deadline, "no answer"
            assert self._process.poll() is None, (self._directory / "server.log").read_text()
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """Kill all of its processes at once, as when its machine fails."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
