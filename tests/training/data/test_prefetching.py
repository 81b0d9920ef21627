"""The thread that works ahead: same items, errors where they belong, and nothing left behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import REPOSITORY

from training.data.prefetching import prefetched


def prefetching_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(count=st.integers(0, 20), ahead=st.integers(1, 4), taken=st.integers(0, 25))
def test_items_come_in_order_and_the_thread_ends(count: int, ahead: int, taken: int) -> None:
    with contextlib.closing(prefetched(range(count), ahead)) as items:
        found = [item for item, _ in zip(items, range(taken), strict=False)]
    assert found == list(range(count))[:taken]
    assert not prefetching_threads()


def test_it_works_ahead_but_not_further_than_told() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    with contextlib.closing(prefetched(source(), 2)) as items:
        assert next(items) == 0
        deadline = time.monotonic() + 10
        # One was taken, two wait, and a third is held by the thread.
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert made == [0, 1, 2, 3]


def test_an_error_of_the_source_is_raised_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("shard 7")

    items = prefetched(source(), 3)
    assert next(items) == 1
    with pytest.raises(ValueError, match="shard 7"):
        next(items)
    assert not prefetching_threads()


def test_an_error_of_the_consumer_ends_the_thread() -> None:
    def fail() -> None:
        with contextlib.closing(prefetched(iter(int, 1), 2)) as items:
            for _ in items:
                raise RuntimeError("step")

    with pytest.raises(RuntimeError, match="step"):
        fail()
    assert not prefetching_threads()


ENDLESS = """
import itertools, signal, sys
from training.data.prefetching import prefetched
{setup}
items = prefetched(itertools.count(), 2)
for item in items:
    print(item, flush=True)
    {body}
"""


@contextlib.contextmanager
def running(setup: str, body: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS.format(setup=setup, body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_interpreter_ends_after_an_error_that_nobody_caught() -> None:
    # The generator is not closed: the traceback, and here a global name, keep it alive to the end.
    with running("", "raise RuntimeError('step')") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.rstrip().endswith("RuntimeError: step")


@pytest.mark.parametrize(
    ("setup", "code"),
    [("", -signal.SIGTERM), ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))", 75)],
    ids=["default", "handler"],
)
def test_sigterm_ends_the_process(setup: str, code: int) -> None:
    with running(setup, "signal.pause() if item == 3 else None") as process:
        assert process.stdout is not None
        while process.stdout.readline() != "3\n":
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, "")
