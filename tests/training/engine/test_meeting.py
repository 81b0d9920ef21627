"""Ranks meet at a store: no time-out ends the wait for a rank that works, and the end of the store does."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed import TCPStore

from training.engine.meeting import Meeting

ROUND_SECONDS = 0.1
RANKS = 3


@pytest.fixture
def on_all_ranks() -> Callable[[Callable[[int, Meeting], Any]], list[Any]]:
    """Call a function once per rank, each in a thread with a meeting of its own at one store."""

    def call(function: Callable[[int, Meeting], Any]) -> list[Any]:
        server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        stores = [TCPStore("127.0.0.1", server.port, is_master=False) for _ in range(RANKS)]
        with ThreadPoolExecutor(RANKS) as threads:
            return list(
                threads.map(
                    lambda rank: function(rank, Meeting(stores[rank], rank, RANKS, ROUND_SECONDS)), range(RANKS)
                )
            )

    return call


def test_values_of_the_first_rank_arrive_in_order(on_all_ranks: Callable[..., list[Any]]) -> None:
    def values(rank: int, meeting: Meeting) -> list[Any]:
        return [meeting.from_first((name, rank, None)) for name in ("a", "b")]

    assert on_all_ranks(values) == [[("a", 0, None), ("b", 0, None)]] * RANKS


def test_every_rank_gets_the_values_of_all_by_rank(on_all_ranks: Callable[..., list[Any]]) -> None:
    def values(rank: int, meeting: Meeting) -> list[Any]:
        time.sleep(2 * (RANKS - rank) * ROUND_SECONDS)
        return [meeting.gathered((name, rank)) for name in ("a", "b")]

    assert on_all_ranks(values) == [[[(name, rank) for rank in range(RANKS)] for name in ("a", "b")]] * RANKS


def test_others_wait_for_a_first_rank_that_works_longer_than_a_round(on_all_ranks: Callable[..., list[Any]]) -> None:
    done = threading.Event()

    def value(rank: int, meeting: Meeting) -> tuple[bool, Any]:
        if rank == 0:
            time.sleep(8 * ROUND_SECONDS)
            done.set()
        return meeting.from_first("checked"), done.is_set()

    assert on_all_ranks(value) == [("checked", True)] * RANKS


def test_the_first_rank_leaves_last_as_its_store_ends_with_it(on_all_ranks: Callable[..., list[Any]]) -> None:
    read: list[int] = []

    def readers(rank: int, meeting: Meeting) -> int:
        time.sleep(3 * rank * ROUND_SECONDS)
        if rank:
            read.append(rank)
        meeting.from_first(None)
        meeting.barrier()
        return len(read)

    assert on_all_ranks(readers)[0] == RANKS - 1


def test_no_values_are_kept() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    before = server.num_keys()
    stores = [TCPStore("127.0.0.1", server.port, is_master=False) for _ in range(2)]

    def calls(rank: int) -> None:
        meeting = Meeting(stores[rank], rank, 2)
        for _ in range(5):
            meeting.from_first("value")
            meeting.gathered("value")
            meeting.barrier()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(calls, range(2)))
    assert server.num_keys() == before


@pytest.mark.parametrize("slow_rank", range(RANKS))
def test_a_barrier_waits_for_the_last_rank(on_all_ranks: Callable[..., list[Any]], slow_rank: int) -> None:
    arrived = threading.Event()

    def passed(rank: int, meeting: Meeting) -> bool:
        if rank == slow_rank:
            time.sleep(5 * ROUND_SECONDS)
            arrived.set()
        meeting.barrier()
        return arrived.is_set()

    assert on_all_ranks(passed) == [True] * RANKS


def test_the_end_of_the_first_rank_ends_the_wait() -> None:
    program = (
        "import sys, torch.distributed as d\n"
        "store = d.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
        "print(store.port, flush=True)\n"
        "sys.stdin.read()\n"
    )
    first = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    try:
        store = TCPStore("127.0.0.1", int(first.stdout.readline()), is_master=False)
        meeting = Meeting(store, 1, 2, round_seconds=60.0)
        threading.Timer(0.5, first.kill).start()
        with pytest.raises(ConnectionError, match="store of rank 0 is gone"):
            meeting.from_first(None)
    finally:
        first.kill()
        first.communicate()
