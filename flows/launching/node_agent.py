"""The program that a supervisor starts on each node over ssh: it runs the node's ranks as long as the connection lives.

Both sides exchange lines of JSON over the connection: nothing that the ranks need, credentials among it, is on a
command line or in a file. The supervisor asks for the node's facts, then starts the ranks, and both sides send beats.
Ranks end, with a grace in which they write a checkpoint, when the supervisor says so, when this program gets SIGTERM,
when the connection closes, and when it is silent: a cut cable closes nothing. When this program itself is killed, they
follow it by their lifeline.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from flows.launching.node_facts import file_digest, free_port, has_gpu, interface_of, own_address, versions
from pipelines.commands.lifeline import LIFELINE_VARIABLE

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 20.0
"""A connection without a beat for so long is lost, on both sides."""
RANKS_GRACE_SECONDS = 16.0
"""Time for the ranks of a node between SIGTERM and SIGKILL; a flow allows its supervisor 20 s."""

_POLL_SECONDS = 0.1
_LAST_LINES_SECONDS = 2.0
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class Supervisor:
    """The other end of the connection: standard input and output of this program."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._unsent: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._heard = time.monotonic()
        self._is_closed = False
        threading.Thread(target=self._receive, name="receive", daemon=True).start()
        # A write blocks when the link is down; the thread that watches the connection must not.
        threading.Thread(target=self._send, name="send", daemon=True).start()

    def say(self, kind: str, value: Any) -> None:
        """Send a message: `facts`, `line`, `beat` or `exit`."""
        self._unsent.put({kind: value})

    def next_message(self, wait_seconds: float) -> dict[str, Any]:
        """The next message; empty if none arrives in time."""
        try:
            return self._messages.get(timeout=wait_seconds)
        except queue.Empty:
            return {}

    def loss(self) -> str | None:
        """Why the connection is lost; None as long as it is not."""
        if self._is_closed:
            return "the connection to the flow has closed"
        if time.monotonic() - self._heard > SILENCE_SECONDS:
            return f"the flow has not been heard for {SILENCE_SECONDS:g} s"
        return None

    def finish(self, wait_seconds: float) -> None:
        """Wait until all messages are sent, at most so long."""
        deadline = time.monotonic() + wait_seconds
        while not self._unsent.empty() and time.monotonic() < deadline and not self._is_closed:
            time.sleep(_POLL_SECONDS)
        time.sleep(_POLL_SECONDS)

    def _receive(self) -> None:
        for line in sys.stdin.buffer:
            self._heard = time.monotonic()
            if message := json.loads(line):
                self._messages.put(message)
        self._is_closed = True

    def _send(self) -> None:
        try:
            while True:
                data = json.dumps(self._unsent.get()).encode() + b"\n"
                while data:
                    data = data[os.write(1, data) :]
        except OSError:
            self._is_closed = True


def main() -> int:
    stops: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: stops.append(received))
    supervisor = Supervisor()
    order: dict[str, Any] = {}
    while "start" not in order:
        if stops or supervisor.loss():
            return 1
        order = supervisor.next_message(_POLL_SECONDS)
        if "check" in order:
            supervisor.say("facts", facts(**order["check"]))
        elif "stop" in order:
            return 0
    return _run(supervisor, stops, **order["start"])


def facts(probe: str | None, token: str, recipe: str, address: str | None = None) -> dict[str, Any]:
    """What the supervisor compares before anything starts.

    Args:
        probe: file that the supervisor wrote into a local workspace, with `token` as its content.
        recipe: path of the recipe.
        address: of this machine, on which rank 0 would listen; empty for any, None for the one that ssh reached.
    """
    if address is None:
        address = own_address(os.environ.get("SSH_CONNECTION", ""))
    return {
        "versions": versions(),
        "address": address,
        "port": free_port(address),
        "is_shared": probe is None or _content_of(probe) == token,
        "recipe": file_digest(recipe),
    }


def _content_of(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return None


def _run(
    supervisor: Supervisor,
    stops: list[int],
    arguments: list[str],
    environment: dict[str, str],
    recipe: dict[str, str],
    num_nodes: int,
) -> int:
    """Run the node's ranks to their end; returns their launcher's exit code.

    Args:
        recipe: path and text of a recipe that this node does not have; empty if it has the same one.
    """
    directory = tempfile.mkdtemp(prefix="clozeworks-") if recipe else None
    try:
        if directory is not None:
            path = os.path.join(directory, os.path.basename(recipe["path"]))
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(recipe["text"])
            arguments = [path if argument == recipe["path"] else argument for argument in arguments]
        child = subprocess.Popen(  # noqa: S603  # no shell
            [sys.executable, "-u", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment_of_ranks(environment, num_nodes),
            start_new_session=True,
        )
        code = _watch(supervisor, stops, child)
    finally:
        if directory is not None:
            shutil.rmtree(directory)
    supervisor.say("exit", code)
    supervisor.finish(_LAST_LINES_SECONDS)
    return code if code >= 0 else 1


def environment_of_ranks(sent: dict[str, str], num_nodes: int) -> dict[str, str]:
    """Environment of this node's ranks: what was sent, on top of the node's own."""
    environment = os.environ | sent
    environment["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), environment.get("PATH", os.defpath)])
    environment[LIFELINE_VARIABLE] = str(os.getpid())
    if not has_gpu():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    # gloo would take the address of the host's name, which on many machines is a loopback address.
    interface = interface_of(own_address(os.environ.get("SSH_CONNECTION", "")))
    if interface is not None and num_nodes > 1:
        for name in _INTERFACES:
            environment.setdefault(name, interface)
    return environment


def _watch(supervisor: Supervisor, stops: list[int], child: subprocess.Popen[bytes]) -> int:
    assert child.stdout is not None
    stream = child.stdout

    def pass_on() -> None:
        for raw in stream:
            supervisor.say("line", raw.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2])

    reader = threading.Thread(target=pass_on, name="output", daemon=True)
    reader.start()
    next_beat, killed_at = 0.0, float("inf")
    reason: Callable[[], bool] = lambda: bool(stops) or supervisor.loss() is not None  # noqa: E731
    while child.poll() is None:
        is_told = "stop" in supervisor.next_message(_POLL_SECONDS)
        now = time.monotonic()
        if now >= next_beat:
            supervisor.say("beat", 0)
            next_beat = now + BEAT_SECONDS
        if killed_at == float("inf") and (is_told or reason()):
            stop_ranks(child)
            killed_at = now + RANKS_GRACE_SECONDS
        if now >= killed_at:
            break
    # Also what the launcher left behind.
    _signal_group(child.pid, signal.SIGKILL)
    code = child.wait()
    reader.join(_LAST_LINES_SECONDS)
    return code


def stop_ranks(launcher: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the ranks, or to all of the launcher's group before there are ranks.

    The launcher gets none: it would exit with 1, and not with the code of the ranks.
    """
    try:
        ranks = psutil.Process(launcher.pid).children()
    except psutil.NoSuchProcess:
        ranks = []
    for rank in ranks:
        try:
            rank.terminate()
        except psutil.NoSuchProcess:
            continue
    if not ranks:
        _signal_group(launcher.pid, signal.SIGTERM)


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    exit_code = main()
    # Threads may be blocked on a dead connection.
    os._exit(exit_code)
