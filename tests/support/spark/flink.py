"""A standalone cluster of Flink and Beam's job server in front of it, started by the scripts of `infra/flink`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from tests.support import REPOSITORY
from tests.support.spark.network import OwnNetwork

from pipelines.runners import maven

# The cluster's network is its own, so these ports are free.
_JOB_PORT, _REST_PORT = 8099, 8081
_START_SECONDS = 600.0
_SCRIPTS = REPOSITORY / "infra" / "flink"
_READ = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"


class FlinkCluster:
    """A job manager, task managers of one slot, and a job server; a context manager.

    Raises:
        JavaUnavailableError: no Java, no Maven, or no network namespace here.
    """

    master: ClassVar[str] = f"127.0.0.1:{_REST_PORT}"
    job_endpoint: ClassVar[str] = f"127.0.0.1:{_JOB_PORT}"

    def __init__(self, directory: Path, task_managers: int = 2):
        self._directory, self._task_managers = directory, task_managers
        maven.fetch_jars("flink", maven.WITH_CLUSTER)
        self._network = OwnNetwork()
        self.session = 0

    def __enter__(self) -> FlinkCluster:
        scratch = self._directory / "scratch"
        scratch.mkdir()
        environment = {
            "PYTHON": sys.executable,
            "SCRATCH": str(scratch),
            "TASK_MANAGERS": str(self._task_managers),
            "FLINK_MASTER": self.master,
            "ARTIFACTS": str(self._directory / "artifacts"),
        }
        cluster = self._network.start([str(_SCRIPTS / "local_cluster.sh")], self._log("cluster"), environment)
        self.session = cluster.pid
        self._wait(cluster, lambda: self._network.listens(_REST_PORT))
        self._wait(cluster, self._has_all_slots)
        server = self._network.start([str(_SCRIPTS / "job_server.sh")], self._log("job_server"), environment)
        self._wait(server, lambda: self._network.listens(_JOB_PORT))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._network.__exit__(kind, error, trace)

    def rest(self, path: str) -> Any:
        """An answer of the cluster's REST interface."""
        command = self.command(sys.executable, "-c", _READ, f"http://{self.master}{path}")
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def jobs(self) -> dict[str, str]:
        """States of all jobs that the cluster has had, by their names."""
        return {job["name"]: job["state"] for job in self.rest("/v1/jobs/overview")["jobs"]}

    def command(self, *command: str) -> list[str]:
        """A command line in the cluster's network."""
        return self._network.command(list(command))

    def log_text(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self._directory.glob("*.log")))

    def _has_all_slots(self) -> bool:
        try:
            return bool(self.rest("/v1/overview")["slots-available"] == self._task_managers)
        except subprocess.CalledProcessError:
            # The interface answers 503 until the job manager has elected itself.
            return False

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def _wait(self, process: subprocess.Popen[bytes], is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise RuntimeError(f"Flink did not start:\n{self.log_text()[-4000:]}")
            time.sleep(0.5)
