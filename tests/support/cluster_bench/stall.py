"""How long steps wait for checkpoints in an object store, beyond what they wait for those on a local disk.

The same pre-training runs in turn on both. Waits are the wall time inside the calls that start a checkpoint, and the
CPU time of the main thread in them, which does not depend on other programs. The last checkpoint is left out, since the
end of a run waits for the store. Calls that leave a checkpoint for later count too.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import REPOSITORY
from tests.support.cluster_bench.training_loop import training_of
from tests.support.object_store.s3_server import running_server
from tests.support.training.synthetic_run import Workspace, write_workspace

from pipelines.contract import storage

GOAL_PERCENT = 1.0
STEPS, EVERY_STEPS = 40, 10
SETTINGS = [
    f"pretraining.phases=[{{max_seq_length=64, steps={STEPS}, global_batch_size=32}}]",
    f"pretraining.checkpoint_every_steps={EVERY_STEPS}",
    *("pretraining.eval_every_steps=1000", "pretraining.log_every_steps=10"),
    *("model.hidden_size=256", "model.num_hidden_layers=4", "model.num_attention_heads=4"),
    "model.intermediate_size=1024",
]
"""About 3 million parameters: 39 MB a checkpoint."""


@dataclass(frozen=True)
class _Waits:
    """Seconds inside the calls that start a checkpoint, and of the loop until its last step."""

    waited_wall: float
    waited_cpu: float
    loop_wall: float
    loop_cpu: float
    checkpoints: int

    @property
    def wall_percent(self) -> float:
        return 100.0 * self.waited_wall / self.loop_wall

    @property
    def cpu_percent(self) -> float:
        return 100.0 * self.waited_cpu / self.loop_cpu


def stall(rounds: int) -> dict[str, Any]:
    """Percent of the time of steps that is lost to checkpoints in a store."""
    (REPOSITORY / "build").mkdir(exist_ok=True)
    found: dict[str, list[_Waits]] = {"store": [], "disk": []}
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as directory, running_server(Path(directory)) as server:
        os.environ.update(server.environment)
        origin = write_workspace(os.path.join(directory, "origin"))
        for number in range(rounds):
            for kind, place in (("store", server.new_prefix()), ("disk", os.path.join(directory, f"disk{number}"))):
                _copy(origin.path, place)
                local = os.path.join(directory, f"{kind}-cache{number}")
                waits = _waits(Workspace(place, origin.recipe), [f"run.local_directory='{local}'", *SETTINGS])
                found[kind].append(waits)
                print(f"stall: {kind}: {waits}", file=sys.stderr, flush=True)
    excess = statistics.median(
        ours.wall_percent - base.wall_percent for ours, base in zip(found["store"], found["disk"], strict=True)
    )
    return {
        "percent": round(excess, 3),
        "cpu_percent": round(
            statistics.median(
                ours.cpu_percent - base.cpu_percent for ours, base in zip(found["store"], found["disk"], strict=True)
            ),
            3,
        ),
        "wall_percent": {kind: [round(each.wall_percent, 2) for each in values] for kind, values in found.items()},
        "loop_seconds": {kind: [round(each.loop_wall, 1) for each in values] for kind, values in found.items()},
        "loop_cpu_seconds": {kind: [round(each.loop_cpu, 1) for each in values] for kind, values in found.items()},
        "checkpoints": {kind: [each.checkpoints for each in values] for kind, values in found.items()},
        "server": server.kind,
        "missed": [] if excess <= GOAL_PERCENT else [f"stall: {excess:.2f} %, at most {GOAL_PERCENT:.0f} % asked"],
    }


def _copy(source: str, target: str) -> None:
    for name in storage.list_files(source):
        if name.startswith(("documents/", "vocabulary/", "examples/")):
            storage.write_bytes(storage.join(target, name), storage.read_bytes(storage.join(source, name)))


def _waits(workspace: Workspace, settings: list[str]) -> _Waits:
    begun: list[tuple[float, float]] = []
    ended: list[tuple[float, float]] = []
    waited = [0.0, 0.0]
    checkpoints = 0
    with training_of(workspace, settings) as run:
        save, train_phase = run._checkpoints.save, run._train_phase

        def timed_save(engine: Any, progress: Any, wait_seconds: float = 0.0) -> None:
            nonlocal checkpoints
            wall, cpu = time.perf_counter(), time.thread_time()
            if progress.step == STEPS:
                ended.append((wall, cpu))
                save(engine, progress, wait_seconds)
                return
            save(engine, progress, wait_seconds)
            waited[0] += time.perf_counter() - wall
            waited[1] += time.thread_time() - cpu
            checkpoints += not run._checkpoints.is_owed

        def timed_phase(*arguments: Any) -> Any:
            begun.append((time.perf_counter(), time.thread_time()))
            return train_phase(*arguments)

        run._checkpoints.save, run._train_phase = timed_save, timed_phase
        code = run.run(restart=None)
        assert code == 0, code
    (first_wall, first_cpu), (last_wall, last_cpu) = begun[0], ended[0]
    return _Waits(waited[0], waited[1], last_wall - first_wall, last_cpu - first_cpu, checkpoints)
