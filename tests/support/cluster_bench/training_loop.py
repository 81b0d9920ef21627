"""One pre-training of a synthetic workspace in this process, without a launcher and its start-up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.training.synthetic_run import Workspace

from pipelines.contract.recipe import read_recipe


@contextmanager
def training_of(workspace: Workspace, settings: list[str]) -> Iterator[Any]:
    """A TrainingRun of the workspace that has not started; the process leaves its group of one rank afterwards."""
    from training.engine.processes import start_processes, stop_processes
    from training.pretraining.bert_objective import BertObjective
    from training.pretraining.run import TrainingRun
    from training.resuming.process_end import StopRequest
    from training.stages.pretraining import pretraining_inputs
    from training.stages.sections import PretrainingSections

    overrides = [f"run.workspace={json.dumps(workspace.path)}", *settings]
    os.environ["MASTER_PORT"] = "0"  # an earlier group may still listen on its port
    processes = start_processes()
    try:
        inputs = pretraining_inputs(PretrainingSections.of(read_recipe(workspace.recipe, overrides)))
        yield TrainingRun(BertObjective(inputs, processes), processes, StopRequest())
    finally:
        stop_processes()
