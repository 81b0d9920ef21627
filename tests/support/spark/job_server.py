"""Beam's job server for Spark, with a small cluster of two executors (`local-cluster`)."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tests.support.spark.network import OwnNetwork

from pipelines.runners import maven
from pipelines.runners.spark import opened_packages

_MAIN_CLASS = "org.apache.beam.runners.spark.SparkJobServerDriver"
# The server's network is its own, so these ports are free.
_JOB_PORT, _ARTIFACT_PORT = 8099, 8098
_START_SECONDS = 120.0
_EXECUTOR_MEBIBYTES = 1024
# Workers persist from stage to stage, which saves their start; with 0 a retried task gets a new worker.
_WORKER_CACHE_MILLISECONDS = 60_000


class SparkJobServer:
    """A job server with a Spark master and executors of one core and one Python worker; a context manager.

    Raises:
        JavaUnavailableError: no Java, no Maven, or no network namespace here.
    """

    def __init__(self, log: Path, workers: int = 2):
        self.log = log
        self._workers = workers
        self._jars = maven.fetch_jars("spark", maven.WITH_CLUSTER)
        self._network = OwnNetwork()
        self._scratch = tempfile.TemporaryDirectory(prefix="clozeworks-spark-")
        self.session = 0

    def __enter__(self) -> SparkJobServer:
        # Executors are started from what looks like an installed Spark.
        home = Path(self._scratch.name) / "spark"
        home.mkdir()
        (home / "jars").symlink_to(self._jars)
        java = [
            "java",
            *opened_packages(),
            "-Xmx1g",
            f"-Dlog4j2.configurationFile={maven.FOLDER}/log4j2.properties",
            "-Dspark.ui.enabled=false",
            f"-Djava.io.tmpdir={self._scratch.name}",
            *("-cp", f"{self._jars}/*", _MAIN_CLASS),
            *("--job-host", "127.0.0.1", "--job-port", str(_JOB_PORT), "--artifact-port", str(_ARTIFACT_PORT)),
            *("--expansion-port", "-1", "--artifacts-dir", self._scratch.name),
            *("--spark-master-url", f"local-cluster[{self._workers},1,{_EXECUTOR_MEBIBYTES}]"),
        ]
        environment = {
            "SPARK_HOME": str(home),
            "SPARK_SCALA_VERSION": "2.12",
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_HOSTNAME": "localhost",
        }
        server = self._network.start(java, self.log, environment)
        self.session = server.pid
        deadline = time.monotonic() + _START_SECONDS
        while not self._network.listens(_JOB_PORT):
            if server.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                tail = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the job server did not start; the end of {self.log}:\n{tail}")
            time.sleep(0.2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._network.__exit__(kind, error, trace)
        self._scratch.cleanup()

    def command(self, job: str, recipe: Path, *arguments: str) -> list[str]:
        """A job's command line in the server's network, with the server as the recipe's runner."""
        own = [f"--environment_cache_millis={_WORKER_CACHE_MILLISECONDS}", *arguments]
        settings = ["--runner=spark", "--set", f"preprocessing.job_endpoint=127.0.0.1:{_JOB_PORT}"]
        return self._network.command([sys.executable, "-m", f"pipelines.{job}", str(recipe), *settings, *own])
