"""Ranks on two hosts over real ssh: same weights as on one, lost hosts noticed, every rank ended."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.support import REPOSITORY
from tests.support.cluster.ssh_hosts import SshHosts, missing, ssh_hosts
from tests.support.training.synthetic_run import Workspace, environment, write_workspace

from flows.running.launch import StageError, StageStoppedError, run_command
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 400
SETTINGS = [
    f"pretraining.phases=[{{max_seq_length=32,steps={STEPS},global_batch_size=16}}]",
    *("pretraining.checkpoint_every_steps=50", "pretraining.eval_every_steps=1000"),
]
SECRET = "canary-7f3d9c"  # a made-up credential


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshHosts]:
    if lacks := missing():
        pytest.skip(f"two hosts over ssh need {lacks}")
    with ssh_hosts(tmp_path_factory.mktemp("hosts")) as found:
        yield found


class Attempt:
    """One attempt at pre-training over both hosts, and what happens while it runs."""

    def __init__(self, hosts: SshHosts, workspace: Workspace, *settings: str) -> None:
        options = ["-F", str(hosts.ssh_config)]
        cluster = ["kind='hostfile'", f"hostfile={hosts.hostfile()!r}", f"options={options!r}"]
        overrides = [*SETTINGS, *(f"pretraining.cluster.{setting}" for setting in (*cluster, *settings))]
        tail = [word for override in overrides for word in ("--set", override)]
        supervisor = [sys.executable, "-m", "flows.launching.hostfile", "--ranks=1", "training.pretrain"]
        self.command = hosts.inside([*supervisor, workspace.recipe, "--workspace", workspace.path, *tail])
        self.workspace, self.lines = workspace, list[str]()

    def run(self, on_line: Callable[[str], None] = lambda _: None) -> None:
        def take(line: str) -> None:
            self.lines.append(line)
            on_line(line)

        own = {**environment(), "CLOZEWORKS_TEST_SECRET": SECRET}
        run_command("pretraining", self.command, self.difference, take, own)

    def difference(self) -> str | None:
        directory = os.path.join(self.workspace.path, "pretraining")
        return None if read_manifest(directory) else "there is no manifest"

    def at_step(self, step: int, action: Callable[[], None]) -> threading.Thread:
        """Do something once this step is done."""

        def wait() -> None:
            deadline = time.monotonic() + 180
            while time.monotonic() < deadline:
                has_begun = os.path.exists(os.path.join(self.workspace.stage(), "metrics.jsonl"))
                if has_begun and max(self.workspace.losses(), default=0) >= step:
                    return action()
                time.sleep(0.05)
            raise AssertionError(f"step {step} was not reached")

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread


def ranks_of(hosts: SshHosts, index: int) -> list[psutil.Process]:
    """The processes that train on a host."""
    found = []
    for pid in hosts.pids(index):
        try:
            process = psutil.Process(pid)
            if "--local_rank=0" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def left_on(hosts: SshHosts) -> list[list[str]]:
    """Command lines of what a run has left on both hosts; the program of a connection may need a moment to end."""
    deadline = time.monotonic() + 5
    while (left := training_processes(hosts)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def training_processes(hosts: SshHosts) -> list[list[str]]:
    """Command lines of all that a run started on both hosts and that lives."""
    lines = []
    for pid in [*hosts.pids(0), *hosts.pids(1)]:
        try:
            lines.append(psutil.Process(pid).cmdline())
        except psutil.NoSuchProcess:
            continue
    return [line for line in lines if any("training" in word or "node_agent" in word for word in line)]


@pytest.fixture(scope="module")
def on_one_node(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = write_workspace(str(tmp_path_factory.mktemp("one")))
    tail = [word for setting in SETTINGS for word in ("--set", setting)]
    result = workspace.run("training.pretrain", *tail, ranks=2)
    assert result.returncode == 0, result.stdout + result.stderr
    return workspace


def test_two_hosts_that_are_lost_and_stopped_give_the_weights_of_one(
    hosts: SshHosts, on_one_node: Workspace, tmp_path: Path
) -> None:
    workspace = write_workspace(str(tmp_path))

    # The cable is pulled: nothing closes, so only silence shows it.
    cut, times = Attempt(hosts, workspace), dict[str, float]()
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
    killed = Attempt(hosts, workspace)

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
    stopped = Attempt(hosts, workspace)

    def shut_down() -> None:
        for rank in ranks_of(hosts, 1):
            rank.send_signal(signal.SIGTERM)

    stopped.at_step(260, shut_down)
    with pytest.raises(StageStoppedError, match="exit code 75"):
        stopped.run()
    assert left_on(hosts) == []

    last = Attempt(hosts, workspace)
    last.run()
    assert any("resum" in line for line in last.lines)
    assert workspace.has_weights_of(on_one_node)


def test_a_cancelled_flow_ends_every_rank_on_every_host(hosts: SshHosts, tmp_path: Path) -> None:
    workspace = write_workspace(str(tmp_path))
    attempt = Attempt(hosts, workspace)

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
            Attempt(hosts, workspace, *settings).run()
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
