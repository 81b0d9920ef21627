"""A Linux network namespace with only loopback, for servers that listen on every interface whatever they are told.

Beam's Java servers do (`ServerFactory`), and a job server runs any command that it receives.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pipelines.runners.maven import JavaUnavailableError

_STOP_SECONDS = 10.0


class OwnNetwork:
    """A namespace, and the processes that were started in it; a context manager that ends them.

    Raises:
        JavaUnavailableError: the system does not allow creating a network namespace.
    """

    def __init__(self) -> None:
        _require_namespaces()
        self._processes: list[subprocess.Popen[bytes]] = []
        holder = ["unshare", "--map-root-user", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 86400"]
        self._holder = subprocess.Popen(holder, stdout=subprocess.PIPE, start_new_session=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n"

    def __enter__(self) -> OwnNetwork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            _signal(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            _signal(process, signal.SIGKILL)
            process.wait()
        self._holder.kill()
        self._holder.wait()

    def command(self, command: list[str]) -> list[str]:
        """A command line that runs in this network."""
        return ["nsenter", f"--target={self._holder.pid}", "--user", "--net", "--preserve-credentials", *command]

    def start(self, command: list[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a server in this network, in a session of its own."""
        with log.open("wb") as stream:
            process = subprocess.Popen(
                self.command(command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def listens(self, port: int) -> bool:
        """Whether this network has a listener, by the kernel's table: sockets of another one cannot reach it."""
        for table in ("tcp", "tcp6"):
            rows = Path(f"/proc/{self._holder.pid}/net/{table}").read_text().splitlines()[1:]
            if any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows):
                return True
        return False


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _require_namespaces() -> None:
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            raise JavaUnavailableError(f"no {program} on the PATH (Linux packages util-linux and iproute2)")
    command = ["unshare", "--map-root-user", "--net", "true"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise JavaUnavailableError(
            f"cannot create a network namespace ({result.stderr.strip()}), and Beam's servers would listen on all "
            "interfaces; allow user namespaces, in a container with --privileged"
        )
