"""Run a job on a local Spark, with two executors and Beam's own job server:

    python infra/spark/local_spark.py -- python -m pipelines.shard_corpus flows/recipes/demo.toml

Fetches the jars once, starts the server, runs the command with Beam's options for it appended, and stops the server.

Beam's job server listens on every interface and runs any command that it receives, so it and the command run in a
separate Linux network namespace with only loopback; without namespaces nothing is started.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / "build" / "spark"
TESTED_BEAM_VERSION = "2.56.0"
# Maven's names for parts of a class path.
WITH_SPARK, WITHOUT_SPARK = "test", "runtime"

_MAIN_CLASS = "org.apache.beam.runners.spark.SparkJobServerDriver"
# The server's network is its own, so these ports are free.
_JOB_PORT, _ARTIFACT_PORT = 8099, 8098
_FETCH_SECONDS = 1200.0
_START_SECONDS = 120.0
_STOP_SECONDS = 10.0
_EXECUTOR_MEBIBYTES = 1024
# Workers persist from stage to stage, which saves their start; with 0 a retried task gets a new worker.
_WORKER_CACHE_MILLISECONDS = 60_000
# What Spark's own launcher opens on Java 17 (JavaModuleOptions.java).
_OPENED = (
    *("lang", "lang.invoke", "lang.reflect", "io", "net", "nio", "util", "util.concurrent", "util.concurrent.atomic"),
    *("/sun.nio.ch", "/sun.nio.cs", "/sun.security.action", "/sun.util.calendar"),
)


class SparkUnavailableError(Exception):
    """Spark cannot run here; the message gives the cause and the remedy."""


def fetch_jars(beam_version: str = TESTED_BEAM_VERSION, scope: str = WITH_SPARK) -> Path:
    """Fetch the class path that pom.xml names, once; return its directory.

    Args:
        scope: `WITH_SPARK`, or `WITHOUT_SPARK` for what a Spark cluster lacks.

    Raises:
        SparkUnavailableError: no Java or Maven here, or Maven cannot get the jars.
    """
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise SparkUnavailableError(f"no {program} on the PATH: install a JDK (17 or 11) and Maven")
    pom = HERE / "pom.xml"
    target = CACHE / f"{scope}-{beam_version}-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        command = ["mvn", "--batch-mode", "--quiet", f"--file={pom}", f"-Dbeam.version={beam_version}"]
        command += ["dependency:copy-dependencies", f"-DincludeScope={scope}", f"-DoutputDirectory={scratch}/jars"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_FETCH_SECONDS)  # noqa: S603  # no shell
        except subprocess.TimeoutExpired as error:
            raise SparkUnavailableError(f"Maven did not get the jars in {_FETCH_SECONDS:.0f} s; try again") from error
        if result.returncode:
            lines = [line for line in result.stdout.splitlines() if "ERROR" in line]
            raise SparkUnavailableError(
                f"Maven cannot get Beam {beam_version} for Spark: {(lines or ['no reason given'])[0]}"
            )
        try:
            os.rename(f"{scratch}/jars", target)
        except OSError:
            # Another process was faster.
            if not target.is_dir():
                raise
    return target


class LocalSpark:
    """A job server with a small cluster: a Spark master and executors of one core, each a process.

    A context manager. Each executor has a Python worker next to it. An executor has one core because Beam drops a dead
    Python worker only when no task of its executor is left; with two, a retried task may get the dead worker again.

    Raises:
        SparkUnavailableError: see `fetch_jars`; or the system does not allow creating a network namespace.
    """

    def __init__(self, log: Path, workers: int = 2, beam_version: str = TESTED_BEAM_VERSION):
        self.log = log
        self._workers = workers
        self._jars = fetch_jars(beam_version)
        self._worker = Path(sys.executable).parent / "clozeworks-worker"
        if not self._worker.exists():
            raise SparkUnavailableError(f"{self._worker} is missing: run make setup")
        _require_namespaces()
        self._artifacts = tempfile.TemporaryDirectory(prefix="clozeworks-spark-")
        self._server: subprocess.Popen[bytes] | None = None
        self._relays: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> LocalSpark:
        opened = [name.removeprefix("/") if name.startswith("/") else f"java.{name}" for name in _OPENED]
        java = [
            "java",
            *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in opened),
            "-Xmx1g",
            f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}",
            "-Dspark.ui.enabled=false",
            f"-Djava.io.tmpdir={self._artifacts.name}",
            *("-cp", f"{self._jars}/*", _MAIN_CLASS),
            *("--job-host", "127.0.0.1", "--job-port", str(_JOB_PORT), "--artifact-port", str(_ARTIFACT_PORT)),
            *("--expansion-port", "-1", "--artifacts-dir", self._artifacts.name),
            *("--spark-master-url", f"local-cluster[{self._workers},1,{_EXECUTOR_MEBIBYTES}]"),
        ]
        # Executors are started from what looks like an installed Spark.
        home = Path(self._artifacts.name) / "spark"
        home.mkdir()
        (home / "jars").symlink_to(self._jars)
        environment = {
            "SPARK_HOME": str(home),
            "SPARK_SCALA_VERSION": "2.12",
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_HOSTNAME": "localhost",
        }
        isolated = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *java]
        with self.log.open("wb") as log:
            self._server = subprocess.Popen(  # noqa: S603  # no shell
                isolated,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        try:
            self._wait_until_listening()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._server is not None
        return self._server.pid

    def options(self) -> list[str]:
        """Beam's options for a job on this Spark."""
        return [
            "--runner=PortableRunner",
            f"--job_endpoint=127.0.0.1:{_JOB_PORT}",
            "--environment_type=PROCESS",
            f"--environment_config={json.dumps({'command': str(self._worker)})}",
            f"--environment_cache_millis={_WORKER_CACHE_MILLISECONDS}",
        ]

    def command(self, job: list[str]) -> list[str]:
        """The job's command line in the server's network, with Beam's options; its own options take precedence."""
        return [*self._inside(), *_with_options(job, self.options())]

    def command_outside(self, job: list[str]) -> list[str]:
        """As `command`, but in the network of this machine, for a job that reads or writes elsewhere."""
        endpoints = {"--job_endpoint": _JOB_PORT, "--artifact_endpoint": _ARTIFACT_PORT}
        own = [f"{name}=127.0.0.1:{self._relay(port)}" for name, port in endpoints.items()]
        return _with_options([*job, *own], self.options())

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--user", "--net", "--preserve-credentials"]

    def _relay(self, port: int) -> int:
        """Open a port on this machine's loopback that leads to one of the server's."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            command = [*self._inside(), sys.executable, str(HERE / "relay.py"), str(listener.fileno()), str(port)]
            self._relays.append(subprocess.Popen(command, pass_fds=[listener.fileno()]))  # noqa: S603  # no shell
            return int(listener.getsockname()[1])

    def stop(self) -> None:
        """Stop the server and every worker that it started."""
        for relay in self._relays:
            relay.kill()
            relay.wait()
        self._relays.clear()
        if self._server is not None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(_STOP_SECONDS)
            self._signal(signal.SIGKILL)
            self._server.wait()
            self._server = None
        self._artifacts.cleanup()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _wait_until_listening(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        assert self._server is not None
        while not _listens(self.pid, _JOB_PORT):
            if self._server.poll() is not None or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the job server did not start; the end of {self.log}:\n{tail}")
            time.sleep(0.2)


def _with_options(job: list[str], options: list[str]) -> list[str]:
    named = {argument.split("=", 1)[0] for argument in job}
    return [*job, *(option for option in options if option.split("=", 1)[0] not in named)]


def _listens(pid: int, port: int) -> bool:
    """Whether the process's own network has a listener, by the kernel's table: sockets of this one cannot reach it."""
    for table in ("tcp", "tcp6"):
        try:
            rows = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        if any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows):
            return True
    return False


def _require_namespaces() -> None:
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            raise SparkUnavailableError(f"no {program} on the PATH (Linux packages util-linux and iproute2)")
    result = subprocess.run(
        ["unshare", "--map-root-user", "--net", "true"],  # noqa: S607  # looked up on the PATH above
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SparkUnavailableError(
            f"cannot create a network namespace ({result.stderr.strip()}), and Beam's job server would listen on all "
            "interfaces; allow user namespaces, in a container with --privileged"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="executors, each with a Python worker")
    parser.add_argument("--beam-version", default=TESTED_BEAM_VERSION, help="version of Beam's Java side")
    parser.add_argument(
        "--cluster-jars", type=Path, metavar="DIRECTORY", help="print the jars that a Spark lacks, and exit"
    )
    parser.add_argument("--outside", action="store_true", help="run the command itself in this machine's network")
    parser.add_argument("job", nargs="*", help="the job's command, after --")
    arguments = parser.parse_args()
    if not arguments.job and arguments.cluster_jars is None:
        parser.error("give the job's command after --")
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        if arguments.cluster_jars is not None:
            jars = sorted(fetch_jars(arguments.beam_version, WITHOUT_SPARK).glob("*.jar"))
            print(",".join(str(jar) for jar in jars if not (arguments.cluster_jars / jar.name).exists()))
            return 0
        with LocalSpark(CACHE / "job_server.log", arguments.workers, arguments.beam_version) as spark:
            command = spark.command_outside if arguments.outside else spark.command
            return subprocess.run(command(arguments.job), check=False).returncode  # noqa: S603  # no shell
    except SparkUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
