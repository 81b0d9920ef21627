"""Detect at once that another rank of this machine has died, and exit with an error line instead of waiting for it.

A collective operation with a killed rank fails late or never: gloo detects a closed connection, NCCL and shared
memory wait for minutes. So every rank holds a handle on the process of each peer, which the kernel signals when that
process ends for any reason. A few bytes of shared memory record which ranks left on purpose, and the step that each
has reached. Ranks of other machines are not watched: there only the closed connection and the process group's
time-out (DEEPSPEED_TIMEOUT, ten minutes) apply, as for a stopped peer (SIGSTOP).
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_RUNNING, _LEFT, _FAILED = 0, 1, 2
_SLOT = struct.Struct("<qq")
"""A rank's state, and the last step that it completed."""
_SETTLE_SECONDS = 0.3
"""Time for peers that died together to be dead, so that a surviving rank reports it."""
_SECONDS_FOR_LAUNCHER = 2.0
"""A launcher that sees the dead rank first reports its exit status; it polls once a second."""
_SECONDS_AFTER_FAILURE = 10.0
"""A failed peer reports its own error; its launcher ends the others, or without one they exit after this."""
EXIT_PEER_DIED = 1


@dataclass(frozen=True)
class _Peer:
    rank: int
    pid: int
    handle: int


class Peers:
    """The ranks of this machine, as watched by this one; created by all ranks together."""

    def __init__(self, rank: int, members: dict[int, int], board: mmap.mmap) -> None:
        """`members`: process ids by rank, this one's included."""
        self._rank, self._members, self._board = rank, members, board
        self._slots = {member: index for index, member in enumerate(sorted(members))}
        self._describe: Callable[[], str] = lambda: "run the same command again"
        self._wake, self._waker = os.pipe()
        self._peers = []
        for member, pid in members.items():
            if member != rank:
                with contextlib.suppress(ProcessLookupError):
                    self._peers.append(_Peer(member, pid, os.pidfd_open(pid)))
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def reached(self, step: int) -> None:
        """Record that this rank has completed a step."""
        _SLOT.pack_into(self._board, self._offset(self._rank), _RUNNING, step)

    def explain_by(self, describe: Callable[[], str]) -> None:
        """Set the remedy to show when a rank has died, such as which checkpoint will be resumed."""
        self._describe = describe

    def leave(self, failed: bool) -> None:
        """Stop watching, and record for the peers whether this rank failed."""
        _SLOT.pack_into(self._board, self._offset(self._rank), _FAILED if failed else _LEFT, self._step(self._rank))
        os.write(self._waker, b"x")
        self._thread.join()
        for descriptor in (self._wake, self._waker, *(peer.handle for peer in self._peers)):
            os.close(descriptor)

    def _offset(self, rank: int) -> int:
        return self._slots[rank] * _SLOT.size

    def _state(self, rank: int) -> int:
        return int(_SLOT.unpack_from(self._board, self._offset(rank))[0])

    def _step(self, rank: int) -> int:
        return int(_SLOT.unpack_from(self._board, self._offset(rank))[1])

    def _watch(self) -> None:
        watched = {peer.handle: peer for peer in self._peers}
        while watched:
            ended = _readable([self._wake, *watched])
            if self._wake in ended:
                return
            gone = [watched.pop(handle) for handle in ended]
            if any(self._state(peer.rank) == _RUNNING for peer in gone):
                self._end()
            if any(self._state(peer.rank) == _FAILED for peer in gone):
                if _readable([self._wake], _SECONDS_AFTER_FAILURE):
                    return
                os._exit(EXIT_PEER_DIED)

    def _end(self) -> None:
        time.sleep(_SETTLE_SECONDS)
        ended = set(_readable([peer.handle for peer in self._peers], 0.0))
        dead = [peer for peer in self._peers if peer.handle in ended and self._state(peer.rank) == _RUNNING]
        alive = [
            rank for rank in self._members if rank not in {peer.rank for peer in self._peers if peer.handle in ended}
        ]
        if self._rank == min(alive):
            line = f"error: {self._what_happened(dead)}; {self._describe()}\n"
            sys.stdout.flush()
            os.write(sys.stderr.fileno(), line.encode())
        time.sleep(_SECONDS_FOR_LAUNCHER)
        os._exit(EXIT_PEER_DIED)

    def _what_happened(self, dead: list[_Peer]) -> str:
        names = ", ".join(f"rank {peer.rank} (process {peer.pid})" for peer in sorted(dead, key=lambda peer: peer.rank))
        step = max(self._step(peer.rank) for peer in dead)
        where = f" after step {step}" if step else ""
        return f"{names} was killed or crashed{where} (out of memory?)"


def _readable(descriptors: list[int], timeout_seconds: float | None = None) -> list[int]:
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return [found for found, _ in poller.poll(None if timeout_seconds is None else timeout_seconds * 1000.0)]


def watch_peers(store: Any, rank: int, world_size: int) -> Peers | None:
    """Connect to the other ranks of this machine through the process group's store; None if there are none.

    Args:
        store: of torch.distributed, a new one for each process group.
        rank: of this process.
        world_size: number of ranks.
    """
    if world_size == 1 or not hasattr(os, "pidfd_open") or not hasattr(os, "memfd_create"):
        return None
    machine = _pid_namespace()
    store.set(f"clozeworks/peers/{rank}", json.dumps([machine, os.getpid()]))
    told = [json.loads(store.get(f"clozeworks/peers/{other}")) for other in range(world_size)]
    members = {other: pid for other, (where, pid) in enumerate(told) if where == machine}
    first, size_bytes = min(members), _SLOT.size * len(members)
    key = f"clozeworks/board/{first}"
    if rank == first:
        # Anonymous memory, without a name in any file system: freed however the ranks end.
        descriptor = os.memfd_create("clozeworks-peers")
        os.ftruncate(descriptor, size_bytes)
        board = mmap.mmap(descriptor, size_bytes)
        store.set(key, str(descriptor))
    else:
        descriptor = os.open(f"/proc/{members[first]}/fd/{int(store.get(key))}", os.O_RDWR)
        board = mmap.mmap(descriptor, size_bytes)
    # The first rank's descriptor must stay open until all have opened it.
    store.add(f"{key}/opened", 1)
    while int(store.add(f"{key}/opened", 0)) < len(members):
        time.sleep(0.01)
    os.close(descriptor)
    return Peers(rank, members, board)


def _pid_namespace() -> str:
    """Identifies the PID namespace: process ids are valid among processes that share it."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        return f"{stream.read().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
