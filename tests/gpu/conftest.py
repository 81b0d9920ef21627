"""The CUDA path on a stand-in for the CUDA libraries: what runs, launches, waits and allocates, without a GPU.

Real are torch's CUDA code, autograd's threads, the caching allocator, DeepSpeed, Inductor and Triton's compiler. The
stand-in says nothing of numbers, of time, or of NCCL's behaviour.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.gpu.stand_in.build import build, environment, missing_requirement
from tests.support import REPOSITORY
from tests.support.training.synthetic_run import Workspace, free_port, write_workspace
from tests.support.training.synthetic_run import environment as child_environment

TIMEOUT_SECONDS = 280


@dataclass(frozen=True)
class Trace:
    """What one step asked of the device; `waits` by where they were."""

    calls: dict[str, int]
    waits: dict[str, int]

    def count(self, *prefixes: str) -> int:
        return sum(number for name, number in self.calls.items() if name.startswith(prefixes))

    @property
    def launches(self) -> int:
        return self.count("kernel", "product")


@dataclass(frozen=True)
class StandIn:
    """Starts commands that find the stand-in in place of the CUDA libraries."""

    directory: Path
    reports: Path

    def python(self, *arguments: str, ranks: int = 1) -> str:
        """Run Python with these arguments, once per rank; returns what all ranks wrote.

        They must all succeed.
        """
        variables = {key: value for key, value in child_environment().items() if key != "DS_ACCELERATOR"}
        variables |= environment(self.directory, ranks)
        if ranks > 1:
            variables |= {"WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        processes = [
            subprocess.Popen(
                [sys.executable, *arguments],
                env=variables | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}),
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(ranks)
        ]
        outputs = [process.communicate(timeout=TIMEOUT_SECONDS)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * ranks, "\n".join(outputs)
        return "\n".join(outputs)

    def training(
        self, workspace: Workspace, module: str, *settings: str, step: int = 0, ranks: int = 1
    ) -> tuple[str, list[Trace]]:
        """Run a command of training with `--set` for each setting; traces one step of each rank, or none for 0."""
        report = self.reports / f"{len(os.listdir(self.reports))}.jsonl"
        report.touch()
        overrides = [argument for setting in settings for argument in ("--set", setting)]
        command = ["-m", "tests.gpu.traced_training", str(report), str(step), module]
        output = self.python(*command, workspace.recipe, "--workspace", workspace.path, *overrides, ranks=ranks)
        return output, [Trace(**json.loads(line)) for line in report.read_text().splitlines()]


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    if (reason := missing_requirement()) is not None:
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("stand-in")
    build(directory)
    return StandIn(directory, tmp_path_factory.mktemp("reports"))


@pytest.fixture(scope="session")
def make_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workspace]:
    """Write a fresh synthetic workspace under a name of its own."""
    return lambda name: write_workspace(str(tmp_path_factory.mktemp(name)))
