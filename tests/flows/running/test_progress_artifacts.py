"""Progress on Prefect's page is sent by a separate thread, whatever the server does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from uuid import UUID, uuid4

import httpx
import pytest

from flows.running import progress_bar as progress_artifacts
from flows.running.progress_bar import StageProgress
from flows.servers import artifact_calls as reporting
from flows.servers.artifact_calls import told_to_prefect

LOGGER = logging.getLogger("test")
TASK_RUN: ContextVar[str] = ContextVar("TASK_RUN")


class Server:
    """Replaces Prefect's: accepts updates, hangs, or fails."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, str, str]] = []
        self.threads: set[threading.Thread] = set()
        self.answers = threading.Event()
        self.error: Exception | None = None

    def take(self, percentage: float, description: str) -> UUID:
        self.threads.add(threading.current_thread())
        self.answers.wait(60)
        if self.error:
            raise self.error
        self.taken.append((percentage, description, TASK_RUN.get()))
        return uuid4()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setattr(progress_artifacts, "create_progress_artifact", lambda at, _key, text: server.take(at, text))
    monkeypatch.setattr(progress_artifacts, "update_progress_artifact", lambda _key, at, text: server.take(at, text))
    monkeypatch.setattr(progress_artifacts, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(progress_artifacts, "LAST_UPDATE_SECONDS", 0.3)
    TASK_RUN.set("documents")
    yield server
    server.answers.set()


def test_lines_are_not_held_up_by_a_server_that_hangs(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    progress = StageProgress("run", "pretraining", LOGGER)
    for step in range(1, 101):
        progress.observe(f"pretraining: step {step}/100: loss 1.0")
    progress.complete()
    assert server.taken == []
    assert threading.current_thread() not in server.threads
    assert len(server.threads) == 1
    assert [record.message for record in caplog.records] == [
        "Prefect's server did not accept 1 updates of the progress bar; the stage itself is not affected"
    ]


def test_the_latest_update_wins_and_the_last_one_is_waited_for(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_artifacts, "LAST_UPDATE_SECONDS", 60.0)
    progress = StageProgress("run", "documents", LOGGER)
    progress.observe("documents: 1 of 10 shards after 1 s")
    for shards in range(2, 9):
        progress.observe(f"documents: {shards} of 10 shards after 1 s")
    threading.Timer(0.2, server.answers.set).start()
    progress.complete()
    assert server.taken[-1] == (100.0, "complete", "documents")
    assert len(server.taken) <= 3
    assert not caplog.records


def test_a_server_that_is_gone_is_said_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.error = httpx.ConnectError("refused")
    server.answers.set()
    progress = StageProgress("run", "documents", LOGGER)
    for shards in range(3):
        progress.observe(f"documents: {shards} of 10 shards after 1 s")
        time.sleep(0.05)
    progress.complete()
    assert len(caplog.records) == 1
    assert "did not accept" in caplog.text


def test_artifacts_of_a_run_wait_for_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "REPORT_SECONDS", 0.2)
    released = threading.Event()
    told_to_prefect(lambda: released.wait(60) and None)()
    released.set()

    def refused() -> None:
        raise httpx.ConnectError("refused")

    told_to_prefect(refused)()

    def blunder() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        told_to_prefect(blunder)()
