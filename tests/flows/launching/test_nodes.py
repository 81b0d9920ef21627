"""What needs no node: hostfiles, the environment of ranks, exit codes, and the facts that are compared."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.launching.hostfile import hosts_of, passed_environment
from flows.launching.node_facts import differences, interface_of, own_address, require_same, shared_probe, versions
from flows.launching.nodes import Host, read_hostfile
from flows.launching.slurm_node import rank_environment
from flows.launching.supervision import exit_code
from pipelines.contract.errors import InputError
from training.settings.cluster import ClusterConfig


def test_a_hostfile_is_deepspeeds(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# the first is the master\nnode-a slots=8\n\n  node-b   slots=4 # half\n")
    assert read_hostfile(str(path)) == [Host("node-a", 8), Host("node-b", 4)]
    assert hosts_of(str(path), 0, one_node=False) == [Host("node-a", 8), Host("node-b", 4)]
    assert hosts_of(str(path), 2, one_node=True) == [Host("node-a", 2)]
    with pytest.raises(InputError, match="node-b has slots=4, fewer than the 8 ranks of each node; lower ranks"):
        hosts_of(str(path), 8, one_node=False)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it names no host; write a line"),
        ("node-a\n", "line 1 is 'node-a'; write `host slots=N`"),
        ("node-a slots=0\n", "line 1 is 'node-a slots=0'"),
        ("node-a slots=1\nnode-a slots=2\n", "line 2 names node-a again; give each host one line"),
        ("-oProxyCommand=x slots=1\n", "line 1 names the host '-oProxyCommand=x', which ssh would read as an option"),
    ],
)
def test_a_hostfile_that_is_none_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_hostfile(str(path))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("codes", "code"),
    [([0, 0], 0), ([75, 75], 75), ([0, 75], 75), ([75, 1], 1), ([247, 2], 2), ([0, None], 1), ([-9, 0], 137)],
)
def test_the_exit_code_of_a_run_is_that_of_its_worst_node(codes: list[int | None], code: int) -> None:
    nodes: Any = [SimpleNamespace(exit_code=each) for each in codes]
    assert exit_code(nodes) == code


def test_ranks_elsewhere_get_what_they_need_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_RUN_ID", "AWS_SESSION_TOKEN", "OMP_NUM_THREADS", "PREFECT_API_KEY", "HOME", "MY_LICENCE"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("CLOZEWORKS_LIFELINE_PID", "7")
    passed = passed_environment(ClusterConfig(environment=("MY_LICENCE",)))
    assert {"MLFLOW_RUN_ID", "AWS_SESSION_TOKEN", "OMP_NUM_THREADS", "MY_LICENCE"} <= passed.keys()
    # A process of this machine, and what belongs to it, mean nothing there.
    assert not {"CLOZEWORKS_LIFELINE_PID", "PREFECT_API_KEY", "HOME"} & passed.keys()


def test_a_task_of_slurm_becomes_a_rank() -> None:
    task = {"SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "PATH": "/bin"}
    rank = rank_environment(task, "10.0.0.1", "4711", "8")
    assert {name: rank[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")} == {
        "RANK": "9",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "1",
        "LOCAL_SIZE": "8",
    }
    assert (rank["MASTER_ADDR"], rank["MASTER_PORT"]) == ("10.0.0.1", "4711")


def test_addresses_are_those_of_the_connection() -> None:
    assert own_address("10.0.0.9 50022 10.0.0.1 22") == "10.0.0.1"
    assert interface_of("127.0.0.1") == interface_of("127.0.0.2") == "lo"
    assert interface_of("192.0.2.1") is None  # reserved for documentation


def test_nodes_that_differ_are_named(tmp_path: Path) -> None:
    here = versions()
    assert differences(here, dict(here)) == ""
    assert differences(here, {**here, "Python": "2.7"}) == f"Python 2.7 there and {here['Python']} here"
    with pytest.raises(InputError, match=r"kind: node b differs: torch 0\.1 there and "):
        require_same("kind", "b", {"versions": {**here, "torch": "0.1"}, "is_shared": True}, here, "ws")
    with pytest.raises(InputError, match=r"kind: node b does not see run\.workspace = 'ws', which is local"):
        require_same("kind", "b", {"versions": here, "is_shared": False}, here, "ws")
    with shared_probe(str(tmp_path)) as (path, token):
        assert path is not None
        assert Path(path).read_text() == token
    assert os.listdir(tmp_path) == []
    with shared_probe("s3://bucket/run") as (path, _):
        assert path is None
