"""The training image's entry point without the image: two nodes on loopback, a signal, and the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import REPOSITORY
from tests.support.preprocessing import small_run

ENTRY_POINT = REPOSITORY / "infra" / "docker" / "entrypoints" / "train.sh"
TRAINING = """
[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 64
[pretraining]
phases = [{ max_seq_length = 32, steps = 300, global_batch_size = 16 }]
learning_rate = 1e-3
num_warmup_steps = 10
eval_every_steps = 1000
eval_examples = 32
checkpoint_every_steps = 1000
log_every_steps = 1
"""


def environment(**more: str) -> dict[str, str]:
    ours = ("NODES", "NODE_RANK", "JOB_COMPLETION_INDEX", "PROCESSES_PER_NODE", "WORKSPACE", "RANK", "WORLD_SIZE")
    inherited = {name: value for name, value in os.environ.items() if name not in (*ours, "MASTER_ADDR", "LOCAL_RANK")}
    programs = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", os.defpath)
    fixed = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CLOZEWORKS_LIFELINE_PID": str(os.getpid())}
    return {**inherited, "PATH": programs, **fixed, **more}


class Nodes:
    """Two nodes with a process each, with the variables that pods of an indexed Job get."""

    def __init__(self, directory: Path):
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = [self._start(node, port) for node in range(2)]

    def _start(self, node: int, port: int) -> subprocess.Popen[bytes]:
        workspace = self.directory / "run"
        variables = environment(
            NODES="2",
            JOB_COMPLETION_INDEX=str(node),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            WORKSPACE=str(workspace),
            STARTED_FILE=str(self.directory / f"started{node}"),
        )
        with self.output(node).open("wb") as output:
            return subprocess.Popen(
                [str(ENTRY_POINT), str(self.directory / "recipe.toml")],
                env=variables,
                cwd=REPOSITORY,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def output(self, node: int) -> Path:
        return self.directory / f"output{node}"

    def wait_for(self, text: str) -> None:
        while text not in self.output(0).read_text():
            assert all(process.poll() is None for process in self.processes), self.said()
            time.sleep(0.02)

    def codes(self) -> list[int]:
        return [process.wait() for process in self.processes]

    def said(self) -> str:
        return "\n".join(self.output(node).read_text() for node in range(2))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pods")
    small_run.write_corpus(directory / "corpus")
    recipe = small_run.RECIPE.format(workspace=directory / "elsewhere", corpus=directory / "corpus") + TRAINING
    (directory / "recipe.toml").write_text(recipe)
    small_run.run_all(str(directory / "recipe.toml"), "--workspace", str(directory / "run"))
    return directory


@pytest.fixture
def started() -> Iterator[list[Nodes]]:
    """Processes in this list end with the test."""
    all_nodes: list[Nodes] = []
    yield all_nodes
    for nodes in all_nodes:
        for process in nodes.processes:
            if process.poll() is None:
                process.terminate()
                process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_signal_to_one_pod_stops_both_with_a_checkpoint_and_the_next_pods_go_on(
    examples: Path, started: list[Nodes]
) -> None:
    first = Nodes(examples)
    started.append(first)
    first.wait_for("pretraining: step 1/300")
    first.processes[1].send_signal(signal.SIGTERM)
    assert first.codes() == [75, 75], first.said()
    assert "a checkpoint is written" in first.said()
    assert [
        name
        for name in os.listdir(examples / "run" / "pretraining.building" / "checkpoints")
        if name.startswith("step-")
    ]
    assert not (examples / "run" / "pretraining" / "manifest.json").exists()

    again = Nodes(examples)
    started.append(again)
    assert again.codes() == [0, 0], again.said()
    assert "resumed from checkpoint" in again.said()
    assert "2 ranks" in again.said()
    assert (examples / "run" / "pretraining" / "manifest.json").exists()
    assert (examples / "started1").exists()


STAND_IN = """
import os, signal, sys, time
rank = os.environ["RANK"]
said = f"started {rank} {os.environ['LOCAL_RANK']} {os.environ['WORLD_SIZE']} {sys.argv[3:]}\\n"
os.write(1, said.encode())
if rank == os.environ.get("FAILS"):
    sys.exit(int(os.environ["CODE"]))
if os.environ.get("WAITS"):
    if os.environ["WAITS"] == "for a step":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    os.write(1, b"waiting\\n")
    time.sleep(300)
"""


def with_stand_in(directory: Path, **variables: str) -> subprocess.Popen[str]:
    """The entry point with a `python` that replaces training, for endings that are rare in training."""
    programs = directory / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "stand_in.py").write_text(STAND_IN)
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{programs}/stand_in.py" "$@"\n')
    (programs / "python").chmod(0o755)
    full = environment(STARTED_FILE=str(directory / "started"), **variables)
    full["PATH"] = f"{programs}{os.pathsep}{full['PATH']}"
    command = [str(ENTRY_POINT), "recipe.toml", "--restart"]
    return subprocess.Popen(command, env=full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ranks_are_numbered_over_all_nodes(tmp_path: Path) -> None:
    (tmp_path / "pretraining").mkdir()
    (tmp_path / "pretraining" / "manifest.json").touch()
    variables = {"NODES": "3", "NODE_RANK": "2", "PROCESSES_PER_NODE": "2", "MASTER_ADDR": "node-0"}
    process = with_stand_in(tmp_path, WORKSPACE=str(tmp_path), **variables)
    output, _ = process.communicate()
    arguments = ["recipe.toml", "--restart", "--workspace", str(tmp_path)]
    assert sorted(output.splitlines()) == [f"started 4 0 6 {arguments}", f"started 5 1 6 {arguments}"]
    assert process.returncode == 0


@pytest.mark.parametrize("code", [1, 2, 134])
def test_the_first_failure_ends_the_others_and_is_the_exit_code(tmp_path: Path, code: int) -> None:
    process = with_stand_in(tmp_path, PROCESSES_PER_NODE="3", FAILS="1", CODE=str(code), WAITS="for a step")
    process.communicate()
    assert process.returncode == code


def test_a_signal_before_training_has_begun_asks_to_be_run_again(tmp_path: Path) -> None:
    process = with_stand_in(tmp_path, PROCESSES_PER_NODE="2", WAITS="untouched")
    assert process.stdout is not None
    waiting = 0
    while waiting < 2:
        waiting += process.stdout.readline() == "waiting\n"
    process.terminate()
    process.communicate()
    assert process.returncode == 75


def test_a_later_node_waits_for_the_model_that_the_first_one_writes(tmp_path: Path) -> None:
    variables = {"NODES": "2", "JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "node-0", "WORKSPACE": str(tmp_path)}
    process = with_stand_in(tmp_path, **variables)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("started 1 0 2")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    (tmp_path / "pretraining").mkdir()
    (tmp_path / "pretraining" / "manifest.json").touch()
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"NODES": "2"}, "no MASTER_ADDR"),
        ({"NODES": "2", "MASTER_ADDR": "node-0"}, "no WORKSPACE"),
        ({"NODES": "two"}, "NODES=two"),
        ({"PROCESSES_PER_NODE": "0"}, "PROCESSES_PER_NODE=0"),
        ({"NODE_RANK": "1"}, "NODE_RANK=1"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, variables: dict[str, str], told: str) -> None:
    process = with_stand_in(tmp_path, **variables)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert told in errors
    assert len(errors.splitlines()) == 1
