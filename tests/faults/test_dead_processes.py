"""A killed process ends in one line or in another attempt, never in a hang, and the bytes stay the same."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import psutil
import pytest
from tests.support import REPOSITORY
from tests.support.faults import failing_steps
from tests.support.faults.scale import rounds
from tests.support.flows.database_templates import install_prefect_database
from tests.support.preprocessing.small_run import built_recipe, files_below
from tests.support.training.synthetic_run import Workspace, write_workspace

from flows.running.command import HOME_NAME
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import read_recipe
from pipelines.jobs.beam_options import pipeline_options
from pipelines.jobs.runner import Job
from pipelines.jobs.worker_processes import WorkerDiedError
from pipelines.runners import local as runners
from pipelines.runners.local import MOST_RETRIES
from pipelines.runners.running import run_pipeline
from pipelines.settings.preprocessing import PreprocessingConfig

pytestmark = pytest.mark.timeout(900)

JOBS = ("shard_corpus", "train_vocabulary", "build_examples")
PATIENCE_SECONDS = 240.0


@pytest.fixture
def local_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job on two worker processes, which import the steps of tests/support."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    recipe = tmp_path / "empty.toml"
    recipe.write_text("")
    read = read_recipe(str(recipe))
    return Job("documents", read, str(tmp_path), PreprocessingConfig(), pipeline_options([]), workers=2)


def run_step(job: Job, step: beam.DoFn) -> None:
    def construct(pipeline: beam.Pipeline) -> None:
        _ = pipeline | beam.Create(range(8)) | beam.Reshuffle() | beam.ParDo(step)

    run_pipeline(job, construct)


@pytest.mark.slow
def test_a_run_whose_worker_died_is_repeated(local_job: Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_step(local_job, failing_steps.DieByNumber(str(tmp_path), times=2))
    assert len(list(tmp_path.glob("done-*"))) == 8
    said = [line for line in capfd.readouterr().err.splitlines() if "retrying" in line]
    assert len(said) in (1, 2), said  # both workers may have died in the first attempt
    assert "was killed by SIGKILL, most likely because memory ran out (lower run.workers); retrying (1 of" in said[0]


@pytest.mark.slow
def test_workers_that_die_each_time_end_in_one_error(
    local_job: Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WorkerDiedError, match=r"^worker process \d+ was killed by SIGKILL, most likely .* run.workers"):
        run_step(local_job, failing_steps.DieByNumber(str(tmp_path), times=100))
    said = capfd.readouterr().err
    assert said.count("retrying") == MOST_RETRIES
    assert "Traceback" not in said
    assert not [child for child in psutil.Process().children(recursive=True) if "local_worker" in str(child.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_mistake_found_in_a_worker_is_one_line_and_not_tried_again(
    workers: int, local_job: Job, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError) as caught:
        run_step(local_job._replace(workers=workers), failing_steps.Refuse())
    assert str(caught.value).startswith("corpus.txt: row ")
    assert str(caught.value).endswith(" has [no text]; name another column")
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_what_a_worker_could_not_read_is_raised_as_it_was(local_job: Job, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        run_step(local_job, failing_steps.FailToRead("/not/here.txt", str(tmp_path)))
    assert caught.value.filename == "/not/here.txt"
    assert len(list(tmp_path.glob("attempt-*"))) <= 2


def test_storage_that_fails_for_a_while_is_tried_again(
    local_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runners, "_RETRY_SECONDS", 0.0)
    run_step(local_job._replace(workers=1), failing_steps.FailForAWhile(str(tmp_path)))
    said = capfd.readouterr().err.splitlines()
    assert [re.sub(r".*; retrying", "retrying", line) for line in said] == [
        f"retrying ({attempt} of 3), finished work is kept" for attempt in (1, 2)
    ]
    assert said[0].startswith("[Errno 116] Stale file handle: '/drive/shard'; ")


@pytest.mark.slow
def test_a_fault_of_the_program_keeps_its_traceback(local_job: Job) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*failing_steps.py.*ZeroDivisionError"):
        run_step(local_job, failing_steps.Blunder())


@contextlib.contextmanager
def command(*arguments: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """A command that is ended, with all its processes, at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, **settings, "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    family = [psutil.Process(process.pid)]
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += family[0].children(recursive=True)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.communicate()


def beam_workers(process: subprocess.Popen[str], least: int) -> list[psutil.Process]:
    """The command's workers, once `count` of them exist."""

    def found() -> list[psutil.Process]:
        children = psutil.Process(process.pid).children(recursive=True)
        forked = psutil.Process(process.pid).cmdline()
        return [c for c in children if "pipelines.jobs.local_worker" in c.cmdline() or c.cmdline() == forked]

    return until(lambda: workers if len(workers := found()) >= least else None, f"{least} workers", process)


def until(look: Callable[[], Any], what: str, process: subprocess.Popen[str]) -> Any:
    """The result of `look`, once it is not None."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            if seen := look():
                return seen
        time.sleep(0.02)
    pytest.fail(f"{what}: not seen; the command says {process.communicate()[0] if process.poll() is not None else ''}")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A recipe, and a workspace `expected` next to it in which its jobs have run undisturbed."""
    return built_recipe(tmp_path_factory.mktemp("jobs"))


@pytest.mark.slow
@pytest.mark.parametrize("round_number", range(rounds(1, 8)))
def test_jobs_whose_workers_are_killed_write_the_same_bytes(round_number: int, recipe: str, tmp_path: Path) -> None:
    generator = random.Random(round_number)
    deaths = 0
    for job in JOBS:
        arguments = (recipe, "--workspace", str(tmp_path / "killed"), "--set", "run.workers=2")
        with command(f"pipelines.{job}", *arguments) as process:
            victim = generator.choice(beam_workers(process, least=2))
            # Rounds differ in the state of the worker: loading, working, or about to end.
            time.sleep(generator.uniform(0.0, 0.5 if round_number == 0 else 6.0))
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
            output = process.communicate(timeout=PATIENCE_SECONDS)[0]
        assert process.returncode == 0, output
        assert "Traceback" not in output
        deaths += output.count("was killed by SIGKILL")
    assert deaths or round_number
    assert files_below(tmp_path / "killed") == files_below(Path(recipe).parent / "expected")


@pytest.mark.slow
def test_workers_listen_on_loopback_only_and_follow_their_killed_run(recipe: str, tmp_path: Path) -> None:
    arguments = (recipe, "--workspace", str(tmp_path / "alone"), "--set", "run.workers=2")
    with command("pipelines.shard_corpus", *arguments) as process:
        workers = beam_workers(process, least=2)
        family = [psutil.Process(process.pid), *workers]
        until(lambda: len(addresses := listening(family)) >= 4 and addresses, "Beam's four ports", process)
        assert {address for address, _ in listening(family)} <= {"127.0.0.1", "::ffff:127.0.0.1"}
        process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive


def listening(family: list[psutil.Process]) -> set[tuple[str, int]]:
    found = set()
    for member in family:
        for connection in member.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.add((connection.laddr.ip, connection.laddr.port))
    return found


FLOW_RECIPE = """
[run]
name = "trial"
workspace = "{folder}/ws"
[documents]
sources = [{{ inputs = ["{folder}/corpus.txt"] }}]
[finetuning]
tasks = []
"""


@pytest.mark.slow
def test_a_flow_outlives_its_private_prefect_server(tmp_path: Path) -> None:
    recipe, go = tmp_path / "recipe.toml", tmp_path / "go"
    recipe.write_text(FLOW_RECIPE.format(folder=tmp_path))
    install_prefect_database(str(tmp_path / "ws" / HOME_NAME))
    settings = {"STAND_IN_WAITS": "documents", "STAND_IN_WAITS_FOR": str(go)}
    with command("tests.support.flows.preprocess_with_stand_ins", str(recipe), **settings) as process:
        assert process.stdout is not None
        lines = []
        while "step 3/" not in (line := process.stdout.readline()):
            assert line, "".join(lines)
            lines.append(line)
        children = psutil.Process(process.pid).children(recursive=True)
        servers = [child for child in children if "flows.servers.local_server" in child.cmdline()]
        assert len(servers) == 1
        servers[0].kill()
        go.touch()
        output = process.communicate(timeout=PATIENCE_SECONDS)[0]
    assert process.returncode == 0, output
    assert output.count("Prefect's server was killed by SIGKILL") == 1
    assert "examples     done in" in output
    assert "Traceback" not in output


def ranks_of(process: subprocess.Popen[str], module: str) -> list[psutil.Process]:
    """The ranks that a launcher has started, by rank."""
    children = psutil.Process(process.pid).children(recursive=True)
    ranks = [child for child in children if module in child.cmdline() and "launcher" not in " ".join(child.cmdline())]
    return sorted(ranks, key=lambda child: int(child.environ().get("RANK", "0")))


@pytest.fixture(scope="module")
def training_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A synthetic workspace of the training tests, ready for pre-training."""
    return write_workspace(str(tmp_path_factory.mktemp("training")), num_documents=60, rows=400)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0][: rounds(1, 2)])
def test_the_death_of_a_rank_is_said_by_the_others(victim: int, training_workspace: Workspace) -> None:
    steps = ("--set", "pretraining.phases.0.steps=4000", "--set", "pretraining.checkpoint_every_steps=2")
    process = training_workspace.start("training.pretrain", *steps, ranks=2)
    output = ""
    try:
        assert process.stdout is not None
        while "step 4/" not in (line := process.stdout.readline()):
            assert line, output
            output += line
        ranks = ranks_of(process, "training.pretrain")
        assert len(ranks) == 2
        ports = {address for rank in ranks for address, _ in listening([rank])}
        assert ports <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        assert ports
        ranks[victim].kill()
        _, alive = psutil.wait_procs(ranks, timeout=30)
        assert not alive
        output += process.communicate(timeout=PATIENCE_SECONDS)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    said = [line for line in output.splitlines() if line.startswith("error: rank")]
    assert len(said) == 1, output
    assert output.count("error:") == 1, output
    assert "Traceback" not in output
    expected = rf"error: rank {victim} \(process {ranks[victim].pid}\) was killed or crashed after step \d+ \(out of "
    assert re.match(expected + r"memory\?\); run the same command again to resume from checkpoint step-0+\d+$", said[0])
