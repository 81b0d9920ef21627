"""The nodes of a hostfile, and a connection to each over ssh."""

from __future__ import annotations

import json
import queue
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.contract.errors import InputError
from training.settings.cluster import ClusterConfig

SSH_OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=10")
"""The user's own options come first, and of two values ssh uses the first."""

_LINE = re.compile(r"(\S+)\s+slots=(\d+)\s*(?:#.*)?")


class Host(NamedTuple):
    """A line of a hostfile."""

    name: str
    slots: int


def read_hostfile(path: str) -> list[Host]:
    """The hosts of DeepSpeed's file: lines `host slots=N`, comments begin with `#`.

    Raises:
        InputError: the file is absent, empty or not of this form.
    """
    where = f"pretraining.cluster.hostfile = {path!r}"
    try:
        with open(path, encoding="utf-8") as stream:
            lines = stream.read().splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{where}: there is no such file; write one with a line `host slots=N` for each node") from (
            error
        )
    hosts: list[Host] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = _LINE.fullmatch(text)
        if found is None or not int(found[2]):
            raise InputError(f"{where}: line {number} is {text!r}; write `host slots=N`, N being at least 1")
        if found[1].startswith("-"):
            raise InputError(f"{where}: line {number} names the host {found[1]!r}, which ssh would read as an option")
        if found[1] in {host.name for host in hosts}:
            raise InputError(f"{where}: line {number} names {found[1]} again; give each host one line")
        hosts.append(Host(found[1], int(found[2])))
    if not hosts:
        raise InputError(f"{where}: it names no host; write a line `host slots=N` for each node")
    return hosts


@dataclass(frozen=True)
class Event:
    """Something that arrived from a node: `facts`, `line`, `beat`, `exit`, `noise` of ssh or the shell, `closed`."""

    node: Node
    kind: str
    value: Any


class Node:
    """A connection to a host on which the program of `node_agent` runs."""

    def __init__(self, host: Host, cluster: ClusterConfig, python: str, directory: str, events: Events) -> None:
        """`python`, `directory`: interpreter, and working directory if there is one, on the node."""
        self.name, self.slots = host
        self.heard = time.monotonic()
        self.exit_code: int | None = None
        self.loss: str | None = None
        self.noise: list[str] = []
        program = (
            f"cd {shlex.quote(directory)} 2>/dev/null; exec {shlex.quote(python)} -u -m flows.launching.node_agent"
        )
        self._ssh = subprocess.Popen(  # noqa: S603  # no shell here; the node's is given quoted words
            ["ssh", *cluster.options, *SSH_OPTIONS, "--", host.name, program],  # noqa: S607  # the user's own ssh
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the flow's SIGTERM is for the supervisor, which stops the ranks over it
        )
        threads = [
            threading.Thread(target=self._receive, args=(stream, events), name=f"{host.name}-{kind}", daemon=True)
            for kind, stream in (("output", self._ssh.stdout), ("errors", self._ssh.stderr))
        ]
        for thread in threads:
            thread.start()
        threading.Thread(target=self._await_end, args=(threads, events), name=f"{host.name}-end", daemon=True).start()

    @property
    def is_running(self) -> bool:
        return self.exit_code is None and self.loss is None

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; a connection that has closed is reported by its event."""
        assert self._ssh.stdin is not None
        try:
            self._ssh.stdin.write(json.dumps(message).encode() + b"\n")
            self._ssh.stdin.flush()
        except (BrokenPipeError, ValueError):
            return

    def close(self) -> None:
        """End the connection; the program on the node then ends its ranks."""
        self._ssh.kill()
        self._ssh.wait()

    def _receive(self, stream: Any, events: Events) -> None:
        for raw in stream:
            text = raw.decode(errors="replace").rstrip("\r\n")
            message = _message_of(text) if stream is self._ssh.stdout else None
            if message is None:
                events.put(Event(self, "noise", text))
            else:
                self.heard = time.monotonic()
                for kind, value in message.items():
                    events.put(Event(self, kind, value))

    def _await_end(self, threads: Sequence[threading.Thread], events: Events) -> None:
        code = self._ssh.wait()
        for thread in threads:
            thread.join()
        events.put(Event(self, "closed", code))


Events = queue.SimpleQueue[Event]


def _message_of(text: str) -> dict[str, Any] | None:
    try:
        message = json.loads(text)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
