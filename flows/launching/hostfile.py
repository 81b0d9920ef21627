"""Ranks on the nodes of a hostfile, by DeepSpeed's launcher over ssh: `kind = "hostfile"`.

    flows.launching.hostfile [--ranks N] [--one-node] MODULE RECIPE [arguments of the module]

DeepSpeed's own multi-node runner calls pdsh, which puts the environment on command lines, ends ranks by `pkill -f` of
every run on a node, and notices no lost node. So this program opens an ssh connection for each node, and the program at
its other end (`node_agent`) starts DeepSpeed's launcher for that node.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flows.launching.job import Job, batch_problem, encoded_world, supervisor_command, supervisor_parser
from flows.launching.node_facts import file_digest, require_same, shared_probe, versions
from flows.launching.nodes import Events, Host, Node, read_hostfile
from flows.launching.supervision import supervise
from flows.parameters.ranks import World
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.commands.lifeline import LIFELINE_VARIABLE, follow_lifeline
from pipelines.commands.recipe_arguments import recipe_from_arguments
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.recipe import RunConfig
from pipelines.contract.workspace import workspace_of
from training.settings.cluster import ClusterConfig
from training.settings.pretraining import PretrainingConfig

PASSED_PREFIXES = (
    *(
        "CLOZEWORKS_",
        "MLFLOW_",
        "AWS_",
        "GOOGLE_",
        "AZURE_",
        "HF_",
        "DS_",
        "NCCL_",
        "GLOO_",
        "TORCH",
        "PYTORCH_",
        "UCX_",
    ),
    *("OMP_", "MKL_", "NUMBA_", "CUDA_DEVICE_", "PYTHON", "TOKENIZERS_", "DO_NOT_TRACK", "http_proxy", "https_proxy"),
    *("no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)
"""Variables with these beginnings are passed to the ranks of all nodes, and those of `cluster.environment`."""

_FACTS_SECONDS = 60.0
_PROGRAM = "flows.launching.hostfile"


def command(job: Job) -> list[str]:
    """The supervisor of a job."""
    return supervisor_command(_PROGRAM, job)


def check(jobs: Sequence[Job], whole: WholeRecipe) -> None:
    """Compare the nodes that jobs will run on, and start nothing on them.

    Raises:
        InputError: the hostfile does not fit the recipe, or a node cannot be used.
    """
    cluster, most = whole.pretraining.cluster, list[Host]()
    assert cluster.hostfile is not None
    for job in jobs:
        hosts = hosts_of(cluster.hostfile, job.ranks, job.one_node)
        size = sum(host.slots for host in hosts)
        shown = f"the {size} ranks on {len(hosts)} nodes of pretraining.cluster.hostfile = {cluster.hostfile!r}"
        if problem := batch_problem(job, whole, World(size, shown)):
            raise InputError(f"{whole.recipe.path}: {problem}")
        most = max(most, hosts, key=len)
    workspace = workspace_of(whole.run)
    if storage.is_local(workspace):
        # The nodes look for a file in it.
        os.makedirs(storage.local_path(workspace), exist_ok=True)
    with _connected(most, cluster) as (nodes, events):
        compared(nodes, events, cluster, workspace, whole.recipe.path, [])


@contextlib.contextmanager
def _connected(hosts: Sequence[Host], cluster: ClusterConfig) -> Iterator[tuple[list[Node], Events]]:
    """A connection to each host, closed at the end."""
    events = Events()
    nodes: list[Node] = []
    try:
        for host in hosts:
            nodes.append(Node(host, cluster, cluster.python or sys.executable, os.getcwd(), events))
        yield nodes, events
    finally:
        for node in nodes:
            node.close()


def main(arguments: list[str] | None = None) -> int:
    stops: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stops.append(received))
    follow_lifeline()
    parser = supervisor_parser(_PROGRAM, "Run a module on the nodes of a hostfile.")
    argv = sys.argv[1:] if arguments is None else arguments
    parsed, _ = parser.parse_known_args(argv)
    recipe = recipe_from_arguments(parsed)
    cluster = recipe.section("pretraining", PretrainingConfig).cluster
    assert cluster.hostfile is not None
    hosts = hosts_of(cluster.hostfile, parsed.ranks, parsed.one_node)
    workspace = workspace_of(recipe.section("run", RunConfig))
    with _connected(hosts, cluster) as (nodes, events):
        facts = compared(nodes, events, cluster, workspace, recipe.path, stops)
        module = [parsed.module, *argv[argv.index(parsed.module) + 1 :]]
        _start(nodes, facts, cluster, module, recipe.path)
        return supervise(nodes, events, stops)


def hosts_of(hostfile: str, ranks: int, one_node: bool) -> list[Host]:
    """The hosts of a run, with the number of ranks of each as its slots.

    Raises:
        InputError: the file is not a hostfile, or a host has fewer slots than ranks.
    """
    hosts = read_hostfile(hostfile)[: 1 if one_node else None]
    for host in hosts:
        if ranks > host.slots:
            raise InputError(
                f"pretraining.cluster.hostfile = {hostfile!r}: {host.name} has slots={host.slots}, fewer than the "
                f"{ranks} ranks of each node; lower ranks, or correct the slots"
            )
    return [Host(host.name, ranks or host.slots) for host in hosts]


def compared(
    nodes: list[Node], events: Events, cluster: ClusterConfig, workspace: str, recipe: str, stops: list[int]
) -> list[Mapping[str, Any]]:
    """Facts of the nodes, in their order, once all of them are as the run needs them.

    Raises:
        InputError: a node cannot be reached, has other versions, or does not see the workspace.
    """
    where, here = f"pretraining.cluster.hostfile = {cluster.hostfile!r}", versions()
    with shared_probe(workspace) as (probe, token):
        for node in nodes:
            node.send({"check": {"probe": probe, "token": token, "recipe": recipe}})
        found = _facts(nodes, events, where, stops)
    for node in nodes:
        require_same(where, node.name, found[node], here, workspace)
    address = _master_address(cluster, found[nodes[0]])
    others = [node.name for node in nodes[1:] if not found[node]["address"].startswith("127.")]
    if address.startswith("127.") and others:
        raise InputError(
            f"{where}: the first node was reached at {address}, where {others[0]} cannot reach it; name it by its "
            "address in the network, or set pretraining.cluster.master_address"
        )
    return [found[node] for node in nodes]


def _facts(nodes: list[Node], events: Events, where: str, stops: list[int]) -> dict[Node, Mapping[str, Any]]:
    found: dict[Node, Mapping[str, Any]] = {}
    deadline = time.monotonic() + _FACTS_SECONDS
    while len(found) < len(nodes):
        if stops:
            raise KeyboardInterrupt
        late = [node.name for node in nodes if node not in found]
        if time.monotonic() > deadline:
            raise InputError(
                f"{where}: node {late[0]} does not answer within {_FACTS_SECONDS:g} s; try `ssh {late[0]}`"
            )
        with contextlib.suppress(queue.Empty):
            event = events.get(timeout=0.1)
            if event.kind == "facts":
                found[event.node] = event.value
            elif event.kind == "noise":
                event.node.noise.append(event.value)
            elif event.kind == "closed":
                said = event.node.noise[-1] if event.node.noise else f"ssh ended with exit code {event.value}"
                raise InputError(
                    f"{where}: node {event.node.name} cannot be used: {said}; correct this until `ssh "
                    f"{event.node.name}` needs no password and the node has this project's Python "
                    "(pretraining.cluster.python)"
                )
    return found


def _master_address(cluster: ClusterConfig, first: Mapping[str, Any]) -> str:
    return cluster.master_address or str(first["address"])


def _start(
    nodes: list[Node], facts: list[Mapping[str, Any]], cluster: ClusterConfig, module: list[str], recipe: str
) -> None:
    """Start DeepSpeed's launcher on each node."""
    world_info = encoded_world({node.name: range(node.slots) for node in nodes})
    address, port = _master_address(cluster, facts[0]), facts[0]["port"]
    digest, environment = file_digest(recipe), passed_environment(cluster)
    with open(recipe, encoding="utf-8") as stream:
        text = stream.read()
    ranks = sum(node.slots for node in nodes)
    shown = ", ".join(f"{node.name} ({node.slots})" for node in nodes)
    print(f"cluster: {ranks} ranks on {shown}; they meet at {address}:{port}", flush=True)
    for index, (node, fact) in enumerate(zip(nodes, facts, strict=True)):
        options = [f"--world_info={world_info}", f"--node_rank={index}", "--quiet"]
        options += [f"--master_addr={address}", f"--master_port={port}", "--module"]
        node.send(
            {
                "start": {
                    "arguments": ["-m", "deepspeed.launcher.launch", *options, *module],
                    "environment": environment,
                    "recipe": {} if fact["recipe"] == digest else {"path": recipe, "text": text},
                    "num_nodes": len(nodes),
                }
            }
        )


def passed_environment(cluster: ClusterConfig) -> dict[str, str]:
    """The variables of this process that ranks on other machines get too."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(PASSED_PREFIXES) and name != LIFELINE_VARIABLE) or name in cluster.environment
    }


if __name__ == "__main__":
    code = exit_code_of(main)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
