"""What is checked before the first stage of a chain: only stages that run here, over a real ssh client."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.launching import launchers, slurm
from flows.launching.job import Job
from flows.launching.launchers import Launcher, launcher_of
from flows.parameters.whole_recipe import WholeRecipe
from flows.running import plan
from flows.running.plan import Stage, StageOutput, require_nodes
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey
from pipelines.contract.recipe import read_recipe


def whole_of(workspace: Path, *settings: str) -> WholeRecipe:
    overrides = [f"pretraining.cluster.{setting}" for setting in settings]
    return WholeRecipe.check(read_recipe("flows/recipes/demo.toml", [*overrides, f"run.workspace={workspace}"]))


def hosts(path: Path, text: str) -> str:
    (path / "hosts").write_text(text)
    return f"hostfile={path}/hosts"


class Due(StageOutput):
    """An output in a state that a test chose."""

    def difference(self) -> str | None:
        if self.directory == "no input":
            raise InputError("its input is missing")
        return None if self.directory == "complete" else "not built yet"


def stage(state: str, job: Job | None = None) -> Stage:
    return Stage("s", (Due("s", state, lambda: StageKey("s", 1, {}, {})),), list, job=job)


@pytest.mark.parametrize(
    ("states", "built_here", "rebuild", "checked"),
    [
        (("complete", "complete", "complete"), (True, True, True), False, []),
        (("complete", "complete", "not built"), (True, True, True), False, ["training.finetune"]),
        (("complete", "not built", "complete"), (True, True, True), False, ["training.pretrain", "training.finetune"]),
        # What comes after a stage that is due is due; an input that an earlier stage makes may be missing.
        (("not built", "complete", "complete"), (True, True, True), False, ["training.pretrain", "training.finetune"]),
        (("complete", "no input", "no input"), (True, True, True), False, ["training.pretrain", "training.finetune"]),
        # A part on another deployment has nodes of its own.
        (("not built", "not built", "not built"), (True, False, True), False, ["training.finetune"]),
        (("not built", "not built", "not built"), (False, True, False), False, ["training.pretrain"]),
        (("complete", "complete", "complete"), (True, True, True), True, ["training.pretrain", "training.finetune"]),
    ],
)
def test_the_nodes_of_stages_that_run_here_are_checked(
    states: tuple[str, str, str],
    built_here: tuple[bool, bool, bool],
    rebuild: bool,
    checked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = whole_of(tmp_path, "kind=hostfile", hosts(tmp_path, "127.0.0.1 slots=1\n"))
    jobs: list[str] = []
    row = Launcher(lambda _: [], check=lambda found, _: jobs.extend(job.module for job in found))
    monkeypatch.setitem(launchers.LAUNCHERS, "hostfile", row)
    of = [None, Job.of(whole, "training.pretrain", 1), Job.of(whole, "training.finetune", 1)]
    parts = [([stage(state, job)], is_here) for state, job, is_here in zip(states, of, built_here, strict=True)]
    require_nodes(whole, parts, rebuild)
    assert jobs == checked


def test_without_a_cluster_no_stage_is_looked_at(tmp_path: Path) -> None:
    class Untouched(StageOutput):
        def difference(self) -> str | None:
            raise AssertionError("its inputs may be large")

    untouched = Stage("s", (Untouched("s", "", lambda: StageKey("s", 1, {}, {})),), list)
    require_nodes(whole_of(tmp_path), [([untouched], True)], rebuild=False)


def refused(whole: WholeRecipe, *jobs: Job) -> str:
    with pytest.raises(InputError) as caught:
        launcher_of(jobs[0]).check(jobs, whole)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh")
def test_a_host_that_ssh_does_not_reach_is_named(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    hostfile = hosts(tmp_path, "127.0.0.1 slots=1\n")
    whole = whole_of(tmp_path / "ws", "kind=hostfile", hostfile, f"options=['-p', '{port}']")
    said = refused(whole, Job.of(whole, "training.pretrain", 1))
    assert "node 127.0.0.1 cannot be used: ssh: connect to host 127.0.0.1 port" in said
    assert "correct this until `ssh 127.0.0.1` needs no password" in said


def test_more_ranks_than_slots_or_rows_are_refused_before_any_connection(tmp_path: Path) -> None:
    many = "".join(f"10.0.0.{number} slots=4\n" for number in range(12))
    whole = whole_of(tmp_path / "ws", "kind=hostfile", hosts(tmp_path, many))
    pretrain, finetune = Job.of(whole, "training.pretrain", 8), Job.of(whole, "training.finetune", 4)
    assert "10.0.0.0 has slots=4, fewer than the 8 ranks of each node" in refused(whole, pretrain)
    assert "finetuning.batch_size = 32 is below the 48 ranks on 12 nodes of pretraining.cluster.hostfile" in refused(
        whole, finetune
    )
    # 0 ranks are all slots of the file.
    assert "full sequences is too small for the 48 ranks on 12 nodes" in refused(
        whole, Job.of(whole, "training.pretrain", 0)
    )


SALLOC = """#!{python}
import sys, time
print("salloc: " + {line!r}, flush=True)
if {waits}:
    print("salloc: Pending job allocation 7", flush=True)
    time.sleep(600)
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("line", "waits", "words"),
    [
        ("Job is in held state, pending scheduler release", True, None),
        ("error: invalid partition specified: none", False, "invalid partition specified: none; correct nodes, ranks"),
        ("Requested partition configuration not available now", True, "2 nodes with 1 ranks each: Requested partition"),
    ],
)
def test_slurm_is_asked_by_a_request_that_is_held(
    line: str, waits: bool, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`salloc` is a stand-in with the lines of Slurm 22.05; tests/cluster has the real one."""
    for name in ("salloc", "srun", "scancel", "scontrol"):
        program = tmp_path / name
        program.write_text(SALLOC.format(python=sys.executable, line=line, waits=waits))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    whole = _slurm(tmp_path)
    job = Job.of(whole, "training.pretrain", 1)
    if words is None:
        slurm.check([job], whole)
    else:
        assert words in refused(whole, job)


def test_a_flow_in_an_allocation_needs_its_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    whole = _slurm(tmp_path)
    job = Job.of(whole, "training.pretrain", 1)
    assert "salloc, srun, scancel, scontrol is not on PATH" in refused(whole, job)
    monkeypatch.setattr(slurm, "_require_commands", lambda: None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert "nodes = 2, but the job that this flow runs in has 1; request more" in refused(whole, job)
    slurm.check([Job.of(whole, "training.finetune", 1, one_node=True)], whole)


def _slurm(tmp_path: Path) -> WholeRecipe:
    settings = ["pretraining.cluster.kind=slurm", "pretraining.cluster.nodes=2", "pretraining.ranks=1"]
    recipe = read_recipe("flows/recipes/demo.toml", [*settings, f"run.workspace={tmp_path}/ws"])
    return WholeRecipe.check(recipe)


def test_the_chain_refuses_before_it_preprocesses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.end_to_end import _require_inputs
    from flows.parameters.requests import RunRequest

    seen: list[Any] = []
    monkeypatch.setattr(plan, "require_nodes", lambda _, parts, __: seen.extend(parts))
    request = RunRequest(recipe="flows/recipes/demo.toml", workspace=str(tmp_path), trials_deployment=None)
    _require_inputs(request.read(), request)
    assert [[each.name for each in stages] for stages, _ in seen] == [
        ["documents", "vocabulary", "examples"],
        ["pretraining"],
        ["finetuning"],
    ]
    assert [is_here for _, is_here in seen] == [True, True, True]
    assert os.listdir(tmp_path) == []
