"""The table of launchers: a row starts the ranks of a job on one kind of cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flows.launching import hostfile, kubernetes, single_node, slurm
from flows.launching.job import Job
from flows.parameters.whole_recipe import WholeRecipe


class Launcher(NamedTuple):
    """How one kind of cluster starts a job.

    A kind other than `none` is a supervisor: a program of this room that is started as a stage's command. It starts all
    ranks on all nodes, prints their lines, ends all of them within the grace after SIGTERM, and reports a lost node
    within a minute. It exits with 75 when the ranks stopped after a checkpoint, and with 2 for a user error.
    """

    command: Callable[[Job], list[str]]
    environment: Callable[[], dict[str, str]] = dict
    finds_free_node: bool = False
    """Whether a scheduler gives each job a node; a hostfile would send all jobs of one node to its first one."""
    check: Callable[[Sequence[Job], WholeRecipe], None] = lambda _jobs, _whole: None
    """Raises InputError where the nodes cannot run these jobs of a recipe; it starts nothing on them."""


LAUNCHERS = {
    "none": Launcher(single_node.command, single_node.environment),
    "hostfile": Launcher(hostfile.command, check=hostfile.check),
    "slurm": Launcher(slurm.command, finds_free_node=True, check=slurm.check),
    "kubernetes": Launcher(kubernetes.command, finds_free_node=True, check=kubernetes.check),
}
"""A new kind needs its file in this room, a row here, and its name in `training.settings.cluster`."""


def launcher_of(job: Job) -> Launcher:
    """The row of a job's cluster."""
    return LAUNCHERS[job.cluster.kind]
