"""Pre-trains a synthetic workspace in this process, as the command does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.support.training.stop_at import Stop

from pipelines.contract.recipe import read_recipe
from training.engine.processes import Processes
from training.pretraining.run import TrainingRun
from training.resuming.checkpointed_stage import is_to_run
from training.settings.tasks import load
from training.stages.continuing import planned_start
from training.stages.objectives import PRETRAINING_OBJECTIVES
from training.stages.pretraining import PretrainingInputs, pretraining_inputs
from training.stages.sections import PretrainingSections

SHORT = [
    "pretraining.phases=[{max_seq_length=32, steps=4, global_batch_size=8}]",
    "pretraining.num_warmup_steps=1",
    "pretraining.checkpoint_every_steps=1",
    "pretraining.eval_examples=16",
]


class Trainer:
    def __init__(self, workspace: Any, processes: Processes) -> None:
        self.workspace, self.processes = workspace, processes
        self.directory = os.path.join(workspace.path, "pretraining")

    def inputs(self, *settings: str) -> PretrainingInputs:
        overrides = [f"run.workspace={json.dumps(self.workspace.path)}", *SHORT, *settings]
        return pretraining_inputs(PretrainingSections.of(read_recipe(self.workspace.recipe, overrides)))

    def __call__(
        self, *settings: str, restart: str | None = None, stop_at: int = 0, continued: str | None = None
    ) -> int:
        """What the command does, but for starting the processes; `continued` is the value of `--continue`."""
        inputs, continuation = planned_start(self.inputs(*settings), continued, restart)
        if not is_to_run(inputs.key, inputs.directory, restart):
            return 0
        objective = load(PRETRAINING_OBJECTIVES[inputs.model.attention])(inputs, self.processes)
        run = TrainingRun(objective, self.processes, Stop(stop_at))  # type: ignore[arg-type]  # has `received`
        return run.run(restart, continuation)

    def weights(self, directory: str = "") -> bytes:
        return Path(directory or self.directory, "encoder", "model.safetensors").read_bytes()

    def is_result_of(self, *settings: str) -> bool:
        return self.inputs(*settings).key.difference(self.directory) is None
