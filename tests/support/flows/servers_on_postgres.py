"""Postgres, MLflow's and Prefect's servers on it, and workers, as infra/compose.yaml has them, on loopback."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.support import REPOSITORY

LOOPBACK = "127.0.0.1"
PATIENCE_SECONDS = 3600.0
"""A busy machine takes half an hour for what takes five minutes on an idle one."""
_ENTRY_POINTS = REPOSITORY / "infra" / "docker" / "entrypoints"
_USER, _NOBODY = "clozeworks", 65534
_POSTGRES = ("initdb", "postgres", "createdb")


def missing() -> str:
    """The programs that this machine lacks, by name; empty if nothing is missing."""
    return ", ".join(name for name in (*_POSTGRES, "setpriv") if _program(name) is None)


def _program(name: str) -> str | None:
    """Path of a program; Debian installs those of Postgres' server outside of PATH."""
    servers = sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *servers]))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


class Servers:
    """All processes of one deployment; `close` ends them, the last one first."""

    def __init__(self, folder: Path, store: Mapping[str, str]) -> None:
        """Start the database and both servers.

        Args:
            folder: of their logs and homes.
            store: environment of clients of the object store, for MLflow's server and the workers' workspaces.
        """
        self.folder, self._store = folder, dict(store)
        # Postgres refuses to run as root, and no other user may enter pytest's own directories.
        self._data = Path(tempfile.mkdtemp(prefix="clozeworks-postgres-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._password = secrets.token_hex(8)
        self.postgres, self.mlflow, self.prefect = free_port(), free_port(), free_port()
        self.prefect_api = f"http://{LOOPBACK}:{self.prefect}/api"
        self.mlflow_uri = f"http://{LOOPBACK}:{self.mlflow}"
        try:
            self._start_postgres()
            self._start_servers()
        except BaseException:
            self.close()
            raise
        self.api = httpx.Client(base_url=self.prefect_api, timeout=120.0)

    @property
    def worker_environment(self) -> dict[str, str]:
        """Of a worker's machine: the addresses of the servers and the credentials of the store, nothing else."""
        return {
            **_inherited(),
            **self._store,
            "PREFECT_API_URL": self.prefect_api,
            "MLFLOW_TRACKING_URI": self.mlflow_uri,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "CLOZEWORKS_HOME": str(REPOSITORY),
            "DO_NOT_TRACK": "1",
        }

    def start_worker(self, pool: str, within: Callable[[list[str]], list[str]], own: Mapping[str, str]) -> None:
        """Start a worker as on a machine of its own.

        Args:
            pool: for which it works.
            within: makes a command line run on that machine.
            own: variables of that machine: homes and caches.
        """
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--install-policy", "never"]
        self._start(pool, within(command), {**self.worker_environment, **own})

    def deploy(self) -> str:
        """`clozeworks deploy`; returns what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.deploy"],
            env=self.worker_environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask Prefect's server; a question that changes nothing is repeated where a busy machine gave no answer."""
        attempts = 5 if method == "GET" or path.endswith("/filter") else 1
        while True:
            attempts -= 1
            try:
                answer = self.api.request(method, path, json=body).raise_for_status()
            except httpx.TransportError:
                if not attempts:
                    raise
                continue
            return answer.json() if answer.content else None

    def logs(self) -> str:
        """The end of every log, for a failure."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    @contextmanager
    def without_postgres(self) -> Iterator[None]:
        """The database is killed, and started again on its files at the end of the block."""
        self._postgres.send_signal(signal.SIGQUIT)  # its immediate shutdown, as after a lost machine
        self._postgres.wait()
        try:
            yield
        finally:
            self._serve_postgres()

    def close(self) -> None:
        """End everything, children of the workers included."""
        for process in reversed(self._processes):
            started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for child in started:
                if child.is_running():
                    child.kill()
        shutil.rmtree(self._data, ignore_errors=True)

    def _start_postgres(self) -> None:
        password = self._data / "password"
        password.write_text(self._password)
        if os.geteuid() == 0:
            for path in (self._data, password):
                os.chown(path, _NOBODY, _NOBODY)
        cluster = str(self._data / "cluster")
        options = ["--auth=scram-sha-256", f"--username={_USER}", f"--pwfile={password}", "--no-sync"]
        subprocess.run(self._as_user("initdb", "-D", cluster, *options), check=True, capture_output=True, cwd="/")
        self._serve_postgres()
        for name in ("mlflow", "prefect"):
            self._until(f"Postgres takes {name}", lambda name=name: self._create_database(name))

    def _serve_postgres(self) -> None:
        cluster = str(self._data / "cluster")
        listening = ["-c", f"listen_addresses={LOOPBACK}", "-p", str(self.postgres), "-k", str(self._data)]
        command = self._as_user("postgres", "-D", cluster, *listening, "-c", "fsync=off")
        self._postgres = self._start("postgres", command, _inherited())

    def _create_database(self, name: str) -> bool:
        place = [f"--host={LOOPBACK}", f"--port={self.postgres}", f"--username={_USER}", name]
        environment = {**_inherited(), "PGPASSWORD": self._password}
        return subprocess.run(["createdb", *place], env=environment, capture_output=True, check=False).returncode == 0

    def _start_servers(self) -> None:
        database = f"{_USER}@{LOOPBACK}:{self.postgres}"
        common = {**_inherited(), "PGPASSWORD": self._password, "PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}
        mlflow = {
            "DATA_DIRECTORY": str(self.folder),
            "MLFLOW_PORT": str(self.mlflow),
            "MLFLOW_WORKERS": "1",
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://{database}/mlflow",
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{self._store['CLOZEWORKS_TEST_BUCKET']}/mlflow",
        }
        prefect = {
            "DATA_DIRECTORY": str(self.folder),
            "PREFECT_SERVER_API_PORT": str(self.prefect),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}/prefect",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        }
        self._start("mlflow", [str(_ENTRY_POINTS / "mlflow.sh")], {**common, **self._store, **mlflow})
        self._start("prefect", [str(_ENTRY_POINTS / "prefect_server.sh"), "--no-ui"], {**common, **prefect})
        for address in (f"{self.mlflow_uri}/health", f"{self.prefect_api}/health"):
            self._until(f"{address} answers", lambda address=address: _answers(address))

    def _as_user(self, *command: str) -> list[str]:
        as_nobody = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
        program, *arguments = command
        return [*(as_nobody if os.geteuid() == 0 else ()), _program(program) or program, *arguments]

    def _start(self, name: str, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{name}.log", "ab") as log:
            started = subprocess.Popen(
                command, env=dict(environment), cwd="/", stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(started)
        return started

    def _until(self, what: str, ask: Any) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not ask():
            assert self._processes[-1].poll() is None, self.logs()
            assert time.monotonic() < deadline, f"waited until {what}\n{self.logs()}"
            time.sleep(0.5)


def _inherited() -> dict[str, str]:
    """This process's environment without settings of servers and stores."""
    prefixes = ("PREFECT_", "MLFLOW_", "AWS_", "PG")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", os.defpath)
    return {**inherited, "PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5.0).is_success
    except httpx.TransportError:
        return False


@contextmanager
def servers_on_postgres(folder: Path, store: Mapping[str, str]) -> Iterator[Servers]:
    servers = Servers(folder, store)
    try:
        yield servers
    finally:
        servers.close()
