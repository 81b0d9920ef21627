"""Progress of a job: counted from its files while it runs, complete when it has completed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.contract.manifest import StageKey
from pipelines.jobs import runner
from pipelines.jobs.runner import Progress
from pipelines.results.builds import open_build


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    for name in ("parts", "shards"):
        (tmp_path / name).mkdir()
    steps = [(f"{tmp_path}/parts", "parts", 1), (f"{tmp_path}/shards", "shards", 2)]
    return Progress("documents", f"{tmp_path}/documents", steps)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_job_shorter_than_the_interval_shows_its_end(progress: Progress, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown():
        pass
    assert capsys.readouterr().err == "documents: 2 of 2 shards after 0 s\n"


def test_a_job_that_fails_shows_no_end(progress: Progress, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="full"), progress.shown():
        raise OSError("full")
    assert capsys.readouterr().err == ""


def test_a_runner_that_returns_before_the_job_is_complete_shows_no_end(
    progress: Progress, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not open_build(f"{tmp_path}/documents", StageKey("documents", 1, {}, {}), None)
    with progress.shown():
        pass
    assert capsys.readouterr().err == ""


def test_steps_follow_each_other_and_no_count_falls(
    progress: Progress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("_FIRST_PROGRESS_SECONDS", "_PROGRESS_SECONDS"):
        monkeypatch.setattr(runner, name, 0.001)
    said: list[str] = []

    def shown(line: str) -> bool:
        said.extend(capsys.readouterr().err.splitlines())
        return any(one.startswith(line) for one in said)

    with progress.shown():
        wait_for(lambda: shown("documents: 0 of 1 parts"))
        (tmp_path / "parts" / "a.arrow").touch()
        wait_for(lambda: shown("documents: 0 of 2 shards"))
        (tmp_path / "shards" / "a.arrow").touch()
        (tmp_path / "shards" / "b.tmp").touch()
        wait_for(lambda: shown("documents: 1 of 2 shards"))
        (tmp_path / "parts" / "a.arrow").unlink()
        (tmp_path / "shards" / "a.arrow").unlink()
        time.sleep(0.05)  # counts again meanwhile
    shown("")
    assert [line.split(" after ")[0] for line in said] == [
        "documents: 0 of 1 parts",
        "documents: 0 of 2 shards",
        "documents: 1 of 2 shards",
        "documents: 2 of 2 shards",
    ]
