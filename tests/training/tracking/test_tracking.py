"""What MLflow receives from a run, against a real server that is absent, killed, or does not respond."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.faults.mlflow_server import Server

from pipelines.contract.workspace import METRICS_NAME
from training.tracking import mlflow_sender
from training.tracking import tracker as tracking
from training.tracking.mlflow_sender import points_of
from training.tracking.sender import Feed
from training.tracking.tracker import Tracker

ARRIVAL_SECONDS = 20.0
ROUND_SECONDS = 0.2
ABSENT = "MLflow is unreachable ("
BY_TOKENS = ("mlm_loss", "nsp_loss", "heldout_mlm_loss")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_sender, "_ROUND_SECONDS", ROUND_SECONDS)
    monkeypatch.setattr(mlflow_sender, "_LONGEST_PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(mlflow_sender, "_LAST_SEND_SECONDS", ARRIVAL_SECONDS)
    monkeypatch.setattr(mlflow_sender.MlflowSender, "waited_seconds", 0.0)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_DISABLE_TELEMETRY"):
        # Set and deleted, so that what the sender sets is taken back after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


class Run:
    """A run on the server, seen from outside."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def curve(self, name: str) -> list[tuple[int, float]]:
        return sorted((point.step, point.value) for point in self._client.get_metric_history(self.run_id, name))

    def metric_names(self) -> set[str]:
        return set(self._client.get_run(self.run_id).data.metrics)

    def parameters(self) -> dict[str, str]:
        return dict(self._client.get_run(self.run_id).data.params)


@pytest.fixture
def new_run(server: Server, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A fresh run, named in the environment as the flow does it."""
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    run = Run(client, client.create_run("0").info.run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.run_id)
    return run


def line_of(step: int) -> dict[str, float]:
    """What the progress line gives, in short; 1,000 tokens a step."""
    return {"loss": 8.0 / step, "mlm_loss": 7.0 / step, "nsp_loss": 1.0 / step, "tokens": 1_000.0 * step}


def log_steps(tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.log(step, line_of(step))


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, what
        time.sleep(ROUND_SECONDS)


def said_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("tracking: ")]


@pytest.mark.slow
def test_curves_by_step_and_by_tokens_parameters_and_the_machine(
    new_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = range(1, 501)
    with Tracker(
        str(tmp_path), True, "pretraining.", parameters={"deviations_from_bert": "none"}, by_tokens=BY_TOKENS
    ) as tracker:
        tracker.log(0, {"heldout_mlm_loss": 9.0})
        log_steps(tracker, steps)
        tracker.log(500, {"heldout_mlm_loss": 3.0})
        wait_until(
            lambda: any(name.startswith("system/") for name in new_run.metric_names()), "no system metrics arrived"
        )
    assert new_run.curve("pretraining.loss") == [(step, 8.0 / step) for step in steps]
    assert new_run.curve("by_tokens/pretraining.mlm_loss") == [(1_000 * step, 7.0 / step) for step in steps]
    assert new_run.curve("by_tokens/pretraining.nsp_loss") == [(1_000 * step, 1.0 / step) for step in steps]
    assert new_run.curve("by_tokens/pretraining.heldout_mlm_loss") == [(0, 9.0), (500_000, 3.0)]
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= new_run.metric_names()
    assert new_run.parameters() == {"pretraining.deviations_from_bert": "none"}
    assert {name for name in new_run.metric_names() if not name.startswith("system/")} == {
        *(f"pretraining.{name}" for name in [*line_of(1), "heldout_mlm_loss"]),
        *(f"by_tokens/pretraining.{name}" for name in BY_TOKENS),
    }
    assert said_lines(capsys) == []


@pytest.mark.slow
def test_without_a_server_the_store_itself_is_written(
    new_run: Run, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a flow names where the recipe names no server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.store_uri)
    with Tracker(str(tmp_path), True, parameters={"name": "value"}) as tracker:
        log_steps(tracker, range(1, 11))
    assert new_run.curve("loss") == [(step, 8.0 / step) for step in range(1, 11)]
    assert new_run.parameters() == {"name": "value"}


class Noting:
    """A sender to no server: it notes what it finds in the file when it is closed."""

    def __init__(self, feed: Feed, sent: list[Any]) -> None:
        self.step, self._feed, self._sent = feed.step, feed, sent

    def close(self) -> None:
        lines = [json.loads(line) for line in Path(self._feed.path).read_text().splitlines()]
        losses = {line["step"]: line["loss"] for line in lines}
        self._sent.append((self.step, self._feed.prefix, self._feed.parameters, losses))


def test_a_new_sender_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to MLflow, which is not asked for here, and another one that is not."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    sent: list[Any] = []
    monkeypatch.setattr(tracking, "SENDERS", (*tracking.SENDERS, lambda _: None, lambda feed: Noting(feed, sent)))
    with Tracker(str(tmp_path), True, "trial.", parameters={"name": "value"}) as tracker:
        log_steps(tracker, range(1, 3))
    with Tracker(str(tmp_path), True, "trial.", resumed_step=1) as tracker:
        log_steps(tracker, range(2, 4))
    with Tracker(str(tmp_path), True, "trial.", resumed_step=3):
        pass
    assert sent == [
        (2, "trial.", {"name": "value"}, {1: 8.0, 2: 4.0}),
        (3, "trial.", {}, {1: 8.0, 2: 4.0, 3: 8.0 / 3}),
        (3, "trial.", {}, {1: 8.0, 2: 4.0, 3: 8.0 / 3}),
    ]


@pytest.mark.slow
def test_only_the_first_rank_writes_and_sends(new_run: Run, tmp_path: Path) -> None:
    with Tracker(str(tmp_path), False, parameters={"rank": "1"}) as tracker:
        tracker.log(1, line_of(1))
    assert not os.listdir(tmp_path)
    assert (new_run.metric_names(), new_run.parameters()) == (set(), {})


@pytest.mark.slow
def test_a_resumed_run_sends_what_the_killed_one_could_not_and_nothing_twice(
    new_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Tracker(str(tmp_path), True) as tracker:
        log_steps(tracker, range(1, 11))
    # Steps 11 to 20 were logged while MLflow was away, and the run was killed; its checkpoint is that of step 15.
    with monkeypatch.context() as away:
        away.delenv("MLFLOW_RUN_ID")
        with Tracker(str(tmp_path), True, resumed_step=10, by_tokens=BY_TOKENS) as tracker:
            log_steps(tracker, range(11, 21))
    with Tracker(str(tmp_path), True, resumed_step=15, by_tokens=BY_TOKENS) as tracker:
        log_steps(tracker, range(16, 31))
    assert new_run.curve("loss") == [(step, 8.0 / step) for step in range(1, 31)]
    assert new_run.curve("by_tokens/mlm_loss") == [(1_000 * step, 7.0 / step) for step in range(1, 31)]


@pytest.mark.slow
def test_a_parameter_with_another_value_is_told_and_stops_nothing(
    new_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("a", "b"):
        with Tracker(str(tmp_path), True, parameters={"name": value, f"only {value}": value}) as tracker:
            log_steps(tracker, range(1, 3))
    assert new_run.parameters() == {"name": "a", "only a": "a", "only b": "b"}
    assert {step for step, _ in new_run.curve("loss")} == {1, 2}
    lines = said_lines(capsys)
    assert len(lines) == 1
    assert "MLflow rejected some of the data (" in lines[0]


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_gets_everything(
    new_run: Run, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Absent in the middle of one run, and at the start of a second one."""
    said: list[str] = []

    def say_until(words: str) -> None:
        def is_said() -> bool:
            said.extend(said_lines(capsys))
            return any(words in line for line in said)

        wait_until(is_said, f"{words!r} was not said: {said}")

    (tmp_path / "late").mkdir()
    with Tracker(str(tmp_path), True, "first.") as tracker:
        log_steps(tracker, range(1, 11))
        wait_until(lambda: len(new_run.curve("first.loss")) == 10, "nothing arrived before the server was killed")
        server.kill()
        log_steps(tracker, range(11, 21))
        say_until(ABSENT)
        with Tracker(str(tmp_path / "late"), True, "late.", parameters={"name": "value"}) as late:
            log_steps(late, range(1, 11))
            say_until(ABSENT)
            server.start()
            say_until("MLflow is back")
        log_steps(tracker, range(21, 31))
    said += said_lines(capsys)
    assert new_run.curve("first.loss") == [(step, 8.0 / step) for step in range(1, 31)]
    assert new_run.curve("late.loss") == [(step, 8.0 / step) for step in range(1, 11)]
    assert new_run.parameters() == {"late.name": "value"}
    assert sum(ABSENT in line for line in said) == 2, "each tracker says it once"
    assert sum("MLflow is back" in line for line in said) == 2
    assert len(said) == 4


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.slow
def test_a_server_that_never_answers_holds_no_process_beyond_the_limit(silent_server: str, tmp_path: Path) -> None:
    """In a separate process: nothing started by MLflow may keep it alive, and the file has all lines.

    MLflow waits 10 seconds for a response, this project's limit is set to 1; the process ended before MLflow gave up if
    the sender's message about that is absent.
    """
    program = f"""
import time
from training.tracking import mlflow_sender
from training.tracking import tracker as tracking
mlflow_sender._LAST_SEND_SECONDS = 1.0
with tracking.Tracker({str(tmp_path)!r}, True) as tracker:
    tracker.log(1, {{"loss": 1.0}})
    tracker.log(2, {{"loss": 2.0}})
    import mlflow
    time.sleep(1)
print("left")
"""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": silent_server, "MLFLOW_RUN_ID": "0" * 32}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    path = tmp_path / METRICS_NAME
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        f"tracking: MLflow did not accept all metrics within 1 s; 2 lines are only in {path}",
        "left",
    ]
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 2.0]


@pytest.mark.slow
def test_a_line_without_tokens_stands_at_the_last_count() -> None:
    """Also across the pieces in which the file is read."""
    lines = [{"step": 5, "mlm_loss": 4.0, "tokens": 700.0}, {"step": 6, "heldout_mlm_loss": 3.0}]
    first, second = (json.dumps({**line, "timestamp_ms": 1}).encode() + b"\n" for line in lines)
    points, tokens = points_of(first + second, 0, "p.", BY_TOKENS)
    assert tokens == 700
    assert ("by_tokens/p.heldout_mlm_loss", 3.0, 1, 700) in points
    assert points_of(second, tokens, "p.", BY_TOKENS)[0] == [point for point in points if "heldout" in point.name]
