"""The log of a pod is shown once, also when its connection breaks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from urllib3.exceptions import ProtocolError

from flows.kubernetes_jobs import logs
from flows.kubernetes_jobs.logs import PodLog

LINES = [(f"2026-01-01T00:00:0{second}.000000000Z", f"line {second}") for second in range(6)]


def test_a_broken_connection_repeats_and_loses_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_AGAIN_SECONDS", 0.01)
    opened: list[int | None] = []

    def read(_pod: str, since_seconds: int | None) -> Iterator[tuple[str, str]]:
        opened.append(since_seconds)
        if len(opened) == 1:
            yield from LINES[:3]
            raise ProtocolError("cut")
        yield from LINES[1:]

    shown: list[str] = []
    log = PodLog("pod", read, shown.append)
    log.ended()
    log.wait(10.0)
    assert shown == [line for _, line in LINES]
    assert opened[0] is None
    assert all(since is not None for since in opened[1:])


def test_two_lines_of_the_same_instant_are_both_shown() -> None:
    shown: list[str] = []
    log = PodLog("pod", lambda *_: iter([LINES[0], (LINES[0][0], "error: again")]), shown.append)
    log.ended()
    log.wait(10.0)
    assert shown == ["line 0", "error: again"]
    assert log.first_error() == "error: again"
