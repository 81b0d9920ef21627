"""Watch the nodes of a run: pass on their lines, end all ranks together, notice a lost node."""

from __future__ import annotations

import contextlib
import queue
import time
from typing import Any

from flows.launching.node_agent import BEAT_SECONDS, RANKS_GRACE_SECONDS, SILENCE_SECONDS
from flows.launching.nodes import Event, Events, Node
from pipelines.contract.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_REQUEUE

STOP_SECONDS = 18.0
"""Time between SIGTERM to this process and its end; the flow allows it 20 s, the ranks have 16 of them."""

_POLL_SECONDS = 0.1
_SECONDS_AFTER_FAILURE = 5.0
"""Ranks of other nodes may still report why one failed, or write their parts of a checkpoint."""
_ERROR_PREFIX = "error: "


def supervise(nodes: list[Node], events: Events, stops: list[int]) -> int:
    """Run until no node has ranks any more; returns the exit code of the run.

    Args:
        nodes: nodes that have been started, that of rank 0 first.
        stops: signals that this process has received, appended meanwhile.
    """
    first, stop_at, deadline, next_beat = nodes[0], float("inf"), float("inf"), 0.0
    while any(node.is_running for node in nodes) and time.monotonic() < deadline:
        with contextlib.suppress(queue.Empty):
            _take(events.get(timeout=_POLL_SECONDS), first)
        now = time.monotonic()
        if now >= next_beat:
            next_beat = now + BEAT_SECONDS
            for node in nodes:
                node.send({})
        for node in nodes:
            if node.is_running and now - node.heard > SILENCE_SECONDS:
                _lose(node, f"nothing has been heard of it for {SILENCE_SECONDS:g} s (link or machine down)")
        if any(node.exit_code == EXIT_REQUEUE for node in nodes):
            stop_at = min(stop_at, now + RANKS_GRACE_SECONDS)  # all ranks have agreed to stop
        elif any(node.exit_code for node in nodes):
            stop_at = min(stop_at, now + _SECONDS_AFTER_FAILURE)
        if stops or any(node.loss for node in nodes):
            stop_at = min(stop_at, now)
        if now >= stop_at and deadline == float("inf"):
            deadline = now + STOP_SECONDS
            for node in nodes:
                node.send({"stop": True})
    while not events.empty():
        _take(events.get(), first)
    if not stops:
        _await_end_of_lost(nodes)
    return exit_code(nodes)


def exit_code(nodes: list[Node]) -> int:
    """2 if a node refused its input, 1 if one was lost, else the first failure; 75 if they stopped at a checkpoint."""
    codes = [node.exit_code for node in nodes]
    if EXIT_BAD_INPUT in codes:
        return EXIT_BAD_INPUT
    if any(code is None for code in codes):
        return EXIT_FAILED
    failed = [code for code in codes if code not in (0, EXIT_REQUEUE) and code is not None]
    if failed:
        return failed[0] if failed[0] > 0 else 128 - failed[0]
    return EXIT_REQUEUE if EXIT_REQUEUE in codes else 0


def _take(event: Event, first: Node) -> None:
    node = event.node
    if event.kind in ("line", "noise"):
        _print(event.value, node, first)
    elif event.kind == "exit":
        node.exit_code = event.value
    elif event.kind == "closed" and node.is_running:
        _lose(node, "its connection has closed (machine restarted, or sshd or its processes killed)")


def _print(line: Any, node: Node, first: Node) -> None:
    """Print a line; those of other nodes than the first one begin with their name, behind `error: ` if they have it."""
    text = str(line)
    if node is not first:
        rest = text.removeprefix(_ERROR_PREFIX)
        text = f"{text[: len(text) - len(rest)]}{node.name}: {rest}"
    print(text, flush=True)


def _lose(node: Node, reason: str) -> None:
    node.loss = reason
    print(
        f"error: node {node.name} is lost: {reason}; the ranks of the other nodes end, and another attempt resumes "
        "from the newest checkpoint",
        flush=True,
    )


def _await_end_of_lost(nodes: list[Node]) -> None:
    """Wait until ranks that cannot be reached have ended by themselves: another attempt must be alone."""
    ends = [node.heard + SILENCE_SECONDS + RANKS_GRACE_SECONDS + 2 * BEAT_SECONDS for node in nodes if node.loss]
    seconds = max(ends, default=0.0) - time.monotonic()
    if seconds > 0:
        names = ", ".join(node.name for node in nodes if node.loss)
        print(f"cluster: waiting {seconds:.0f} s until ranks on {names} have ended by themselves", flush=True)
        time.sleep(seconds)
