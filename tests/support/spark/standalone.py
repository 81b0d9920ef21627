"""A standalone cluster of Spark: a master and a worker, each a process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from tests.support.spark.network import OwnNetwork

from pipelines.runners import maven
from pipelines.runners.spark import opened_packages

# The cluster's network is its own, so these ports are free.
_MASTER_PORT, _PAGE_PORT, _WORKER_PAGE_PORT = 7077, 8080, 8081
_START_SECONDS = 180.0
_READ_PAGE = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{_PAGE_PORT}/json/').read().decode())"


class StandaloneSpark:
    """A master and a worker with two cores; a context manager. The cluster has no jar of Beam.

    Raises:
        JavaUnavailableError: no Java, no Maven, or no network namespace here.
    """

    master: ClassVar[str] = f"spark://127.0.0.1:{_MASTER_PORT}"
    environment: ClassVar[dict[str, str]] = {
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_HOSTNAME": "localhost",
        "SPARK_PUBLIC_DNS": "127.0.0.1",
    }

    def __init__(self, directory: Path):
        self._directory = directory
        self._jars = Path(maven.fetch_jars("spark", maven.WITH_CLUSTER))
        self._network = OwnNetwork()

    def __enter__(self) -> StandaloneSpark:
        home = self._directory / "home"
        (home / "jars").mkdir(parents=True)
        for jar in self._jars.glob("*.jar"):
            if not jar.name.startswith("beam-"):
                (home / "jars" / jar.name).symlink_to(jar)
        environment = {**self.environment, "SPARK_HOME": str(home), "SPARK_SCALA_VERSION": "2.12"}
        java = ["java", *opened_packages(), "-Xmx512m", "-cp", f"{home}/jars/*"]
        deploy = "org.apache.spark.deploy"
        master = [f"{deploy}.master.Master", "--host", "127.0.0.1", "--port", str(_MASTER_PORT)]
        worker = [f"{deploy}.worker.Worker", "--host", "127.0.0.1", "--cores", "2", "--memory", "3g"]
        master += ["--webui-port", str(_PAGE_PORT)]
        worker += ["--webui-port", str(_WORKER_PAGE_PORT), "--work-dir", f"{self._directory}/work", self.master]
        self._network.start([*java, *master], self._directory / "master.log", environment)
        self._wait(lambda: self._network.listens(_MASTER_PORT) and self._network.listens(_PAGE_PORT))
        self._network.start([*java, *worker], self._directory / "worker.log", environment)
        self._wait(lambda: bool(self.page()["aliveworkers"]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._network.__exit__(kind, error, trace)

    def page(self) -> dict[str, Any]:
        """The master's page as JSON: `activeapps`, `completedapps`, `workers`."""
        command = self._network.command([sys.executable, "-c", _READ_PAGE])
        shown: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return shown

    def command(self, *command: str) -> list[str]:
        """A command line in the cluster's network."""
        return self._network.command(list(command))

    def _wait(self, is_ready: Any) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not is_ready():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self._directory.glob("*.log"))
                self.__exit__(None, None, None)
                raise RuntimeError(f"the Spark cluster did not start:\n{logs}")
            time.sleep(0.5)
