"""Pre-train several workspaces one after another in one process group: starting one takes longer than these runs.

    pretrain_in_turn.py recipe.toml --workspace A -- recipe.toml --workspace B --poison 96:144 ...

With `--poison first:last` the last rank's part of the loss is NaN in every step that reads one of these samples.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from typing import Any

import torch

from pipelines.commands.lifeline import follow_lifeline
from pipelines.commands.recipe_arguments import add_recipe_arguments, recipe_from_arguments
from pipelines.contract.errors import InputError
from training.data.batches import StepBatch
from training.engine.processes import Processes, start_processes
from training.engine.training_engine import TrainingEngine
from training.pretraining.bert_objective import BertObjective
from training.pretraining.run import TrainingRun
from training.resuming.process_end import StopRequest
from training.resuming.progress import Progress
from training.stages.pretraining import pretraining_inputs
from training.stages.sections import PretrainingSections

poisoned = range(0)


class WatchedRun(TrainingRun):
    """Poisons steps, and records whether a step without an update left all weights unchanged."""

    def _step(self, engine: TrainingEngine, batch: StepBatch, progress: Progress) -> Any:
        if not poisoned:
            return super()._step(engine, batch, progress)
        first, rank = batch.next_position - batch.global_sequences, self._processes.rank
        if rank == self._processes.world_size - 1 and max(first, poisoned.start) < min(
            batch.next_position, poisoned.stop
        ):
            # What the sums are divided by, on this rank alone.
            batch = dataclasses.replace(batch, global_masked_tokens=float("nan"))  # type: ignore[arg-type]
        before = engine.full_precision_state()
        result = super()._step(engine, batch, progress)
        if not engine.was_updated:
            after = engine.full_precision_state()
            same = all(torch.equal(before[name], after[name]) for name in before)
            print(f"rank {rank}: weights {'unchanged' if same else 'CHANGED'}", flush=True)
        return result


def run(arguments: list[str], processes: Processes) -> None:
    global poisoned
    parser = argparse.ArgumentParser()
    add_recipe_arguments(parser)
    parser.add_argument("--poison", default="0:0")
    parsed = parser.parse_args(arguments)
    poisoned = range(*map(int, parsed.poison.split(":")))
    try:
        inputs = pretraining_inputs(PretrainingSections.of(recipe_from_arguments(parsed)))
        assert WatchedRun(BertObjective(inputs, processes), processes, StopRequest()).run(restart=None) == 0
    except InputError as error:
        print(f"error: {error}", flush=True)


def main(arguments: list[str]) -> None:
    follow_lifeline()
    processes = start_processes()
    while arguments:
        end = arguments.index("--") if "--" in arguments else len(arguments)
        print(f"run {' '.join(arguments[:end])}", flush=True)
        run(arguments[:end], processes)
        arguments = arguments[end + 1 :]


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)
