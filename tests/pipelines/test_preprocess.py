"""`clozeworks preprocess`: the three jobs in one process, with forked workers, give the bytes of three commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import REPOSITORY
from tests.support.preprocessing.small_run import built_recipe, files_below

from pipelines.runners import local
from pipelines.runners.running import job_of


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A recipe, and a workspace `expected` next to it in which its jobs have run with one worker."""
    return built_recipe(tmp_path_factory.mktemp("preprocess"))


def preprocess(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", "preprocess", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["run.workers=2"],  # forked
        ["run.workers=1"],  # in the command's own process
        ["run.workers=2", "preprocessing.environment={ CLOZEWORKS_TEST = '1' }"],  # started as programs
    ],
)
def test_all_ways_to_run_write_the_same_bytes_and_skip_what_is_complete(
    settings: list[str], recipe: str, tmp_path: Path
) -> None:
    arguments = [recipe, "--workspace", str(tmp_path), *(word for one in settings for word in ("--set", one))]
    first = preprocess(*arguments)
    assert first.returncode == 0, first.stderr
    assert files_below(tmp_path) == files_below(Path(recipe).parent / "expected")
    again = preprocess(*arguments)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == "".join(
        f"{stage}: complete and unchanged in {tmp_path}/{stage}\n" for stage in ("documents", "vocabulary", "examples")
    )


def test_workers_are_started_as_programs_where_they_cannot_be_forked(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of("documents", None, [recipe, "--set", "run.workers=2"])
    assert local.forks_workers(job)
    assert not local.forks_workers(job._replace(workers=1))
    assert not local.forks_workers(job._replace(beam_runner="DirectRunner"))
    monkeypatch.setattr(local, "can_fork", lambda: False)
    assert local.fork_workers(job) is None


def test_a_wrong_setting_of_the_last_job_is_refused_before_the_first_one_starts(recipe: str, tmp_path: Path) -> None:
    result = preprocess(recipe, "--workspace", str(tmp_path / "w"), "--set", "examples.passes=0")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "examples" in result.stderr
    assert "passes" in result.stderr
    assert not (tmp_path / "w").exists()
