"""Ranks on two nodes of a real Slurm: same weights as on one, cancelled jobs, requeue after a checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from tests.support import REPOSITORY
from tests.support.cluster.attempt import SECRET, Attempt, as_arguments
from tests.support.cluster.slurm import Slurm, missing, slurm
from tests.support.cluster.stand_in_rank import SECRET_VARIABLE
from tests.support.training.synthetic_run import Workspace, environment, write_workspace

from flows.running.launch import StageStoppedError
from pipelines.contract.errors import InputError

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = ["pretraining.phases=[{max_seq_length=32,steps=200,global_batch_size=16}]"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if lacks := missing():
        pytest.skip(f"a Slurm cluster needs {lacks}")
    with slurm(tmp_path_factory.mktemp("slurm")) as found:
        yield found


def attempt_at(cluster: Slurm, workspace: Workspace, *settings: str) -> Attempt:
    return Attempt(cluster, "flows.launching.slurm", workspace, SETTINGS, *settings)


def test_two_nodes_of_slurm_resume_and_give_the_weights_of_one(
    cluster: Slurm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one = write_workspace(str(tmp_path_factory.mktemp("one")))
    result = one.run("training.pretrain", *as_arguments(SETTINGS), ranks=2)
    assert result.returncode == 0, result.stdout + result.stderr
    workspace = write_workspace(str(tmp_path_factory.mktemp("two")))

    # Slurm stops the job, as it does before a maintenance or for a job of higher priority.
    stopped = attempt_at(cluster, workspace)

    def preempt(line: str) -> None:
        if "step 60/" in line:
            (job,) = cluster.jobs()
            cluster.ask("scancel", "--signal=TERM", job.split()[0])

    with pytest.raises(StageStoppedError, match="exit code 75"):
        stopped.run(preempt)
    assert cluster.jobs_left() == []

    last = attempt_at(cluster, workspace)
    last.run()
    assert any("resum" in line for line in last.lines), last.lines
    assert not any(SECRET in line for line in last.lines)
    assert cluster.jobs_left() == []
    assert workspace.has_weights_of(one)


def test_every_ending_of_a_run_ends_its_job(cluster: Slurm) -> None:
    """A cancelled flow, a preempted job, and a supervisor that is killed; with ranks that train nothing."""
    settings = ["--set", "pretraining.cluster.kind=slurm", "--set", "pretraining.cluster.nodes=2"]
    module = ["tests.support.cluster.stand_in_rank", "flows/recipes/demo.toml", *settings]
    own = environment() | cluster.environment | {SECRET_VARIABLE: SECRET}

    def end(how: Callable[[subprocess.Popen[str]], object]) -> tuple[int, list[str]]:
        command = [sys.executable, "-m", "flows.launching.slurm", "--ranks=1", *module]
        process = subprocess.Popen(
            command, env=own, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line.strip())
            if len([each for each in lines if "started" in each]) == 2 and "started" in line:
                how(process)
        return process.wait(), lines

    code, lines = end(lambda process: process.terminate())
    assert sorted(line for line in lines if "started" in line or "stopped" in line) == [
        "rank 0 of 2 started with its secret",
        "rank 0 stopped after a checkpoint",
        "rank 1 of 2 started with its secret",
        "rank 1 stopped after a checkpoint",
    ]
    assert (code, cluster.jobs_left()) == (75, [])

    code, _ = end(lambda _: cluster.ask("scancel", "--signal=TERM", cluster.jobs()[0].split()[0]))
    assert (code, cluster.jobs_left()) == (75, [])

    code, _ = end(lambda process: process.kill())
    assert (code, cluster.jobs_left()) == (-9, [])


def test_what_slurm_cannot_run_is_refused(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> None:
    workspace = write_workspace(str(tmp_path_factory.mktemp("refused")))

    def refused(*settings: str) -> str:
        with pytest.raises(InputError) as caught:
            attempt_at(cluster, workspace, *settings).run()
        assert cluster.jobs_left() == []
        return str(caught.value)

    assert "Invalid partition name specified; correct pretraining.cluster (nodes, options)" in refused(
        "options=['--partition=none']"
    )
    assert "0 of 2 nodes have answered, and srun said: " in refused("python='/no/python'")
    assert not os.path.exists(f"{workspace.path}/pretraining.building")
