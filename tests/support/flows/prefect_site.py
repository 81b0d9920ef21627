"""A Prefect server and process workers on loopback, as a user would start them, and the REST calls of the tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import psutil
from tests.support.flows.database_templates import install_prefect_database

LOOPBACK = "127.0.0.1"
PATIENCE_SECONDS = 300.0
"""Time-out of anything that happens eventually: a busy machine is slow, and only a hang is a failure."""

ValueT = TypeVar("ValueT")


def wait_for(ask: Callable[[], ValueT | None], what: str, pause_seconds: float = 0.5) -> ValueT:
    """Poll until the answer is true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(pause_seconds)
    raise AssertionError(f"waited {PATIENCE_SECONDS:.0f} s for {what}")


class PrefectSite:
    """One server with its own home; `close` ends everything that was started."""

    def __init__(self, home: str, repository: str) -> None:
        self.home, self.repository = home, repository
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = probe.getsockname()[1]
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "PREFECT_HOME": home,
            "PREFECT_API_URL": f"http://{LOOPBACK}:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "CLOZEWORKS_HOME": repository,
            "CLOZEWORKS_IMAGE": "clozeworks/job",
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
        }
        self._api = httpx.Client(base_url=self.environment["PREFECT_API_URL"], timeout=60.0)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.start("prefect", "server", "start", "--host", LOOPBACK, "--port", str(port), "--no-ui")
        wait_for(self._answers, "the Prefect server")

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command that runs until `close`; its output is written to the home."""
        with open(os.path.join(self.home, f"process-{len(self._processes)}.log"), "wb") as log:
            command = [sys.executable, "-m", module, *arguments]
            process = subprocess.Popen(
                command, env=self.environment, cwd=self.home, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        return process

    def start_worker(self, pool: str) -> subprocess.Popen[bytes]:
        return self.start("prefect", "worker", "start", "--pool", pool, "--install-policy", "never")

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the project to its end."""
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(
            command, env=self.environment, cwd=self.repository, capture_output=True, text=True, check=False, timeout=600
        )

    def get(self, path: str) -> Any:
        return self._request("GET", path).raise_for_status().json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._request("POST", path, body).raise_for_status().json()

    def refused(self, path: str, body: dict[str, Any]) -> str:
        """The server's message about a request that it rejects."""
        answer = self._request("POST", path, body)
        assert answer.is_client_error, answer.text
        return str(answer.json()["detail"])

    def deployment(self, flow: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/deployments/name/{flow}/{name}")
        return found

    def run(self, deployment: dict[str, Any], request: dict[str, Any], name: str | None = None) -> str:
        """Schedule a run for now, under a name as the page's form takes one; returns its id."""
        body = {"parameters": {"request": request}, "state": {"type": "SCHEDULED"}, **({"name": name} if name else {})}
        return str(self.post(f"/deployments/{deployment['id']}/create_flow_run", body)["id"])

    def state(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/flow_runs/{run}")["state"]
        return found

    def set_state(self, run: str, kind: str, name: str | None = None) -> None:
        self.post(f"/flow_runs/{run}/set_state", {"state": {"type": kind, "name": name}, "force": kind == "SCHEDULED"})

    def wait_until_ended(self, run: str) -> dict[str, Any]:
        """Wait for a final state."""
        ended = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return wait_for(lambda: state if (state := self.state(run))["type"] in ended else None, f"the end of {run}")

    def family(self, run: str) -> list[str]:
        """A run and all runs of the flows within it."""
        found, level = [run], [run]
        while level:
            body = {"flow_runs": {"parent_flow_run_id": {"any_": level}}}
            level = [each["id"] for each in self.post("/flow_runs/filter", body)]
            found += level
        return found

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        """Artifacts of a run and of the flows within it, by key."""
        body = {"artifacts": {"flow_run_id": {"any_": self.family(run)}}}
        return {each["key"]: each for each in self.post("/artifacts/filter", body) if each["key"]}

    def log_lines(self, run: str) -> list[str]:
        lines: list[str] = []
        while True:
            body = {
                "logs": {"flow_run_id": {"any_": self.family(run)}},
                "sort": "TIMESTAMP_ASC",
                "offset": len(lines),
            }
            page = self.post("/logs/filter", body)
            lines += [each["message"] for each in page]
            if not page:
                return lines

    def close(self) -> None:
        """End all started commands, workers before the server, with their child processes."""
        for process in reversed(self._processes):
            started = descendants(process)
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for each in started:
                kill(each)
        self._api.close()

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """One request, repeated while SQLite is locked by another, as Prefect's own client does."""

        def ask() -> httpx.Response | None:
            try:
                answer = self._api.request(method, path, json=body)
            except httpx.ReadTimeout:
                # A question may be asked again; what changes something may have been done.
                if method != "GET":
                    raise
                return None
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

        return wait_for(ask, f"an answer to {path}")

    def _answers(self) -> bool:
        try:
            return self._api.get("/health").is_success
        except httpx.TransportError:
            assert self._processes[0].poll() is None, "the server has ended"
            return False


@contextmanager
def prefect_site(home: str, repository: str) -> Iterator[PrefectSite]:
    install_prefect_database(home)
    site = PrefectSite(home, repository)
    try:
        yield site
    finally:
        site.close()


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def trainers_in(workspace: str, ranks_only: bool = False) -> list[psutil.Process]:
    """The processes that train in a workspace: DeepSpeed's launchers, which forward SIGTERM, and the ranks."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        is_rank = any(word.startswith("--local_rank") for word in words)
        if "training.pretrain" in words and any(workspace in word for word in words) and (is_rank or not ranks_only):
            found.append(process)
    return found


def signal_all(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def has_sigterm_waiting(process: psutil.Process) -> bool:
    """Was a stopped process sent SIGTERM, which it will receive when it continues?"""
    with open(f"/proc/{process.pid}/status") as stream:
        fields = dict(line.split(":", 1) for line in stream)
    return bool(int(fields["ShdPnd"], 16) >> (signal.SIGTERM - 1) & 1)
