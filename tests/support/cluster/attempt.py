"""One attempt at pre-training over the nodes of a test's cluster, started as a flow starts it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tests.support.cluster.stand_in_rank import SECRET_VARIABLE
from tests.support.training.synthetic_run import Workspace, environment

from flows.running.launch import run_command
from pipelines.contract.manifest import read_manifest

SECRET = "canary-7f3d9c"  # a made-up credential
PATIENCE_SECONDS = 300.0


class Cluster(Protocol):
    """Nodes of a test."""

    @property
    def environment(self) -> Mapping[str, str]: ...

    def settings(self) -> list[str]:
        """Values of `pretraining.cluster`."""

    def inside(self, command: list[str]) -> list[str]:
        """The command of a program that reaches the nodes."""


def as_overrides(cluster: Cluster, *settings: str) -> list[str]:
    """Settings of the recipe's section, those of the cluster first."""
    return [f"pretraining.cluster.{setting}" for setting in (*cluster.settings(), *settings)]


def as_arguments(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


class Attempt:
    """One attempt at pre-training over all nodes, a rank on each, and what happens while it runs.

    Args:
        program: the supervisor of the cluster's kind.
        overrides: of the recipe.
        settings: further ones of `pretraining.cluster`.
    """

    def __init__(
        self, cluster: Cluster, program: str, workspace: Workspace, overrides: Sequence[str], *settings: str
    ) -> None:
        tail = as_arguments([*overrides, *as_overrides(cluster, *settings)])
        supervisor = [sys.executable, "-m", program, "--ranks=1", "training.pretrain"]
        self.command = cluster.inside([*supervisor, workspace.recipe, "--workspace", workspace.path, *tail])
        self.cluster, self.workspace, self.lines = cluster, workspace, list[str]()

    def run(self, on_line: Callable[[str], None] = lambda _: None) -> None:
        def take(line: str) -> None:
            self.lines.append(line)
            on_line(line)

        own = {**environment(), **self.cluster.environment, SECRET_VARIABLE: SECRET}
        run_command("pretraining", self.command, self.difference, take, own)

    def difference(self) -> str | None:
        directory = os.path.join(self.workspace.path, "pretraining")
        return None if read_manifest(directory) else "there is no manifest"

    def at_step(self, step: int, action: Callable[[], None]) -> threading.Thread:
        """Do something once this step is done."""
        thread = threading.Thread(target=lambda: (wait_for_step(self.workspace, step), action()), daemon=True)
        thread.start()
        return thread


def wait_for_step(workspace: Workspace, step: int) -> None:
    """Wait until pre-training has done a step."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        has_begun = os.path.exists(os.path.join(workspace.stage(), "metrics.jsonl"))
        if has_begun and max(workspace.losses(), default=0) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")
