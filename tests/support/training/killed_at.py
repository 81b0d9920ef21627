"""Pre-train, and kill this rank in a chosen step, once a checkpoint of the run is stored.

killed_at.py STEP recipe.toml --workspace s3://bucket/run ...
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import Any

from pipelines.commands.recipe_arguments import add_recipe_arguments, recipe_from_arguments
from training.data.batches import StepBatch
from training.engine.processes import start_processes
from training.engine.training_engine import TrainingEngine
from training.pretraining.bert_objective import BertObjective
from training.pretraining.run import TrainingRun
from training.resuming.process_end import StopRequest
from training.resuming.progress import Progress
from training.stages.pretraining import pretraining_inputs
from training.stages.sections import PretrainingSections


class KilledRun(TrainingRun):
    """Ends without a word in the step after `last_step`."""

    last_step: int

    def _step(self, engine: TrainingEngine, batch: StepBatch, progress: Progress) -> Any:
        if progress.step == self.last_step:
            while not self._checkpoints.names():
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._step(engine, batch, progress)


def main(step: int, arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    add_recipe_arguments(parser)
    inputs = pretraining_inputs(PretrainingSections.of(recipe_from_arguments(parser.parse_args(arguments))))
    processes = start_processes()
    run = KilledRun(BertObjective(inputs, processes), processes, StopRequest())
    run.last_step = step
    run.run(restart=None)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
