"""The programs that Slurm starts on each node: a rank, and a watch that sends the node's facts and then beats.

flows.launching.slurm_node rank ADDRESS PORT RANKS_PER_NODE MODULE [arguments]
flows.launching.slurm_node watch QUESTION
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

from flows.launching.node_agent import BEAT_SECONDS, facts
from flows.launching.node_facts import has_gpu


def main() -> None:
    kind, *arguments = sys.argv[1:]
    if kind == "rank":
        address, port, ranks, *module = arguments
        _become_rank(address, port, ranks, module)
    _watch(arguments[0], cancels=len(arguments) > 1)


def _become_rank(address: str, port: str, ranks_per_node: str, module: list[str]) -> None:
    """Become the rank of this task: signals and exit codes are then its own."""
    environment = rank_environment(os.environ, address, port, ranks_per_node)
    os.execve(sys.executable, [sys.executable, "-u", "-m", *module], environment)  # noqa: S606  # no shell


def rank_environment(task: os._Environ[str] | dict[str, str], address: str, port: str, ranks: str) -> dict[str, str]:
    """The variables of torch's launchers, from those of a Slurm task."""
    environment = {
        **task,
        "RANK": task["SLURM_PROCID"],
        "WORLD_SIZE": task["SLURM_NTASKS"],
        "LOCAL_RANK": task["SLURM_LOCALID"],
        "LOCAL_SIZE": ranks,
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }
    environment["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), environment.get("PATH", os.defpath)])
    if not has_gpu():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment


def _watch(question: str, cancels: bool) -> None:
    """Send facts and beats until the supervisor is gone; `cancels`: the allocation must not outlive it."""
    # Slurm ends it by SIGKILL at last; a SIGTERM is for the ranks, which need it a while longer.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    node = {"node": os.environ["SLURMD_NODENAME"], "index": int(os.environ["SLURM_NODEID"])}
    threading.Thread(target=_follow_input, args=(cancels and not node["index"],), name="input", daemon=True).start()
    message: dict[str, object] = {**node, **facts(**json.loads(question))}
    while True:
        os.write(1, json.dumps(message).encode() + b"\n")
        time.sleep(BEAT_SECONDS)
        message = dict(node)


def _follow_input(cancels: bool) -> None:
    """End this task, and with `cancels` its allocation, when the supervisor has ended, also by SIGKILL."""
    while os.read(0, 1024):
        continue
    if cancels:
        subprocess.run(["scancel", os.environ["SLURM_JOB_ID"]], check=False)  # noqa: S603, S607  # the user's own Slurm
    os._exit(0)


if __name__ == "__main__":
    main()
