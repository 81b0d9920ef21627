"""Ranks on two hosts over real ssh: same weights as on one, lost hosts noticed, every rank ended."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import REPOSITORY
from tests.support.cluster.attempt import SECRET, Attempt, as_arguments
from tests.support.cluster.ssh_hosts import SshHosts, left_on, missing, ranks_of, ssh_hosts, training_processes
from tests.support.training.synthetic_run import Workspace, write_workspace

from flows.running.launch import StageError, StageStoppedError
from pipelines.contract.errors import InputError

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 400
SETTINGS = [
    f"pretraining.phases=[{{max_seq_length=32,steps={STEPS},global_batch_size=16}}]",
    *("pretraining.checkpoint_every_steps=50", "pretraining.eval_every_steps=1000"),
]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshHosts]:
    if lacks := missing():
        pytest.skip(f"two hosts over ssh need {lacks}")
    with ssh_hosts(tmp_path_factory.mktemp("hosts")) as found:
        yield found


def attempt_at(hosts: SshHosts, workspace: Workspace, *settings: str) -> Attempt:
    return Attempt(hosts, "flows.launching.hostfile", workspace, SETTINGS, *settings)


@pytest.fixture(scope="module")
def on_one_node(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = write_workspace(str(tmp_path_factory.mktemp("one")))
    result = workspace.run("training.pretrain", *as_arguments(SETTINGS), ranks=2)
    assert result.returncode == 0, result.stdout + result.stderr
    return workspace


def test_two_hosts_that_are_lost_and_stopped_give_the_weights_of_one(
    hosts: SshHosts, on_one_node: Workspace, tmp_path: Path
) -> None:
    workspace = write_workspace(str(tmp_path))

    # The cable is pulled: nothing closes, so only silence shows it.
    cut, times = attempt_at(hosts, workspace), dict[str, float]()
    seen: dict[str, list[str]] = {}

    def pull() -> None:
        seen["commands"] = [word for line in training_processes(hosts) for word in line]
        seen["secret"] = [process.environ().get("CLOZEWORKS_TEST_SECRET", "") for process in ranks_of(hosts, 1)]
        times["cut"] = time.monotonic()
        hosts.cut(1)

    def watch(line: str) -> None:
        if line.startswith("error: node 10.213.7.2 is lost"):
            times["said"] = time.monotonic()

    cut.at_step(60, pull)
    with pytest.raises(StageError, match=r"node 10\.213\.7\.2 is lost: nothing has been heard of it for 20 s"):
        cut.run(watch)
    print(f"said after {times['said'] - times['cut']:.1f} s, over after {time.monotonic() - times['cut']:.1f} s")
    assert times["said"] - times["cut"] < 40
    # No rank of this attempt is left on either host, also where no message could arrive.
    assert left_on(hosts) == []
    assert seen["secret"] == [SECRET]
    assert not any(SECRET in word for word in seen["commands"])
    hosts.mend(1)

    # The other host loses all its processes at once.
    killed = attempt_at(hosts, workspace)

    def kill() -> None:
        times["killed"] = time.monotonic()
        hosts.kill(1)

    killed.at_step(160, kill)
    with pytest.raises(StageError, match=r"node 10\.213\.7\.2 is lost: its connection has closed"):
        killed.run()
    print(f"killed: over after {time.monotonic() - times['killed']:.1f} s")
    assert any("resum" in line and "50" in line for line in killed.lines), killed.lines
    assert left_on(hosts) == []
    hosts.boot(1)

    # A host shuts down in order: all ranks agree, write a checkpoint and exit with 75.
    stopped = attempt_at(hosts, workspace)

    def shut_down() -> None:
        for rank in ranks_of(hosts, 1):
            rank.send_signal(signal.SIGTERM)

    stopped.at_step(260, shut_down)
    with pytest.raises(StageStoppedError, match="exit code 75"):
        stopped.run()
    assert left_on(hosts) == []

    last = attempt_at(hosts, workspace)
    last.run()
    assert any("resum" in line for line in last.lines)
    assert workspace.has_weights_of(on_one_node)


def test_a_cancelled_flow_ends_every_rank_on_every_host(hosts: SshHosts, tmp_path: Path) -> None:
    workspace = write_workspace(str(tmp_path))
    attempt = attempt_at(hosts, workspace)

    def cancel(line: str) -> None:
        if "step 20/" in line:
            assert [len(ranks_of(hosts, index)) for index in range(2)] == [1, 1]
            raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        attempt.run(cancel)
    assert left_on(hosts) == []
    assert any("stopped by a signal after step" in line for line in attempt.lines), attempt.lines
    assert time.monotonic() - begin < 200


def test_what_cannot_run_is_refused_before_anything_starts(hosts: SshHosts, tmp_path: Path) -> None:
    workspace = write_workspace(str(tmp_path))

    def refused(*settings: str) -> str:
        with pytest.raises(InputError) as caught:
            attempt_at(hosts, workspace, *settings).run()
        return str(caught.value)

    assert "no such file; write one with a line" in refused(f"hostfile='{tmp_path}/none'")
    lonely = tmp_path / "lonely"
    lonely.write_text("10.213.7.1 slots=1\n10.213.7.9 slots=1\n")
    unreachable = refused(f"hostfile='{lonely}'")
    assert "node 10.213.7.9 cannot be used: ssh: connect to host 10.213.7.9" in unreachable
    assert "cannot be used: " in refused("python='/no/python'")

    other = tmp_path / "other"
    for package in ("pipelines", "training", "flows"):
        shutil.copytree(REPOSITORY / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    (other / "flows" / "ui.py").write_text("changed = True\n")
    program = other / "python"
    program.write_text(f'#!/bin/sh\ncd {other}\nPYTHONPATH= exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    different = refused(f"python='{program}'")
    assert "node 10.213.7.1 differs: code " in different
    assert different.endswith("install the same versions there, or set pretraining.cluster.python")

    with hosts.hidden(1, workspace.path):
        apart = refused()
    assert f"node 10.213.7.2 does not see run.workspace = '{workspace.path}', which is local" in apart

    assert left_on(hosts) == []
    assert sorted(os.listdir(workspace.path)) == [
        "documents",
        "examples",
        "lonely",
        "other",
        "recipe.toml",
        "vocabulary",
    ]
