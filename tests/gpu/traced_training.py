"""Run a training command under the stand-in and write what one of its steps asked of the device.

    python -m tests.gpu.traced_training REPORT STEP MODULE ARGUMENTS...

MODULE is training.pretrain, training.distill, ... The report is JSON, one line per rank, of `Trace`; the
command ends after that step or, for STEP 0, at its end. The stand-in computes nothing, all numbers on the device are 0.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import traceback
import warnings
from collections import Counter
from typing import Any

import torch
from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator, stage3

from pipelines.commands.process_exit import run_and_leave
from training.pretraining import run
from training.pretraining.objective import Tally
from training.pretraining.run_state import RunState
from training.resuming.process_end import exit_code_of_rank

_STAND_IN = ctypes.CDLL(None)
_IN_STEP = "called a synchronizing"


def main() -> None:
    report, watched, module, *arguments = sys.argv[1:]
    # DeepSpeed compares lists of ranks through the device.
    partition_parameters.assert_ints_same_as_other_ranks = lambda _: None
    partitioned_param_coordinator.assert_ints_same_as_other_ranks = lambda _: None
    stage3.assert_ints_same_as_other_ranks = lambda _: None
    _count_ones()
    # The measured one comes back from the device as 0.
    run.RunState = lambda engine, gradients, _: RunState(engine, gradients, 1e15)  # type: ignore[assignment,misc]
    if int(watched):
        _watch(int(watched), report)
    sys.argv = [module, *arguments]
    command = importlib.import_module(module).main
    run_and_leave(lambda: exit_code_of_rank(command))


def _count_ones() -> None:
    """Sums come back from the device as 0, and means of no rows are none."""
    original = Tally.reduced

    def reduced(self: Tally, processes: Any, *others: Any) -> tuple[Tally, tuple[float, ...]]:
        original(self, processes, *others)
        numbers = [1.0 if isinstance(other, torch.Tensor) else float(other) for other in others]
        ones = torch.ones(len(self.names), dtype=torch.float64)
        return Tally(self.names, ones), tuple(processes.world_size * number for number in numbers)

    Tally.reduced = reduced  # type: ignore[method-assign]


def _watch(watched: int, report: str) -> None:
    original, waits = run.TrainingRun._step, Counter[str]()
    steps = 0

    def show(message: Any, *_: Any, **__: Any) -> None:
        if _IN_STEP in str(message):
            frames = [frame for frame in traceback.extract_stack()[:-1] if "warnings.py" not in frame.filename]
            names = [f"{frame.filename.split('site-packages/')[-1]}:{frame.lineno}" for frame in frames[:-5:-1]]
            waits[" < ".join(names)] += 1

    def step(self: Any, engine: Any, batch: Any, progress: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps != watched:
            return original(self, engine, batch, progress)
        warnings.showwarning = show
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        _STAND_IN.stand_in_reset()
        original(self, engine, batch, progress)
        torch.cuda.set_sync_debug_mode("default")
        with open(report, "a", encoding="utf-8") as stream:
            print(json.dumps({"waits": waits, "calls": _calls(report)}), file=stream)
        os._exit(0)

    run.TrainingRun._step = step  # type: ignore[method-assign]


def _calls(report: str) -> dict[str, int]:
    listed = f"{report}.{os.getpid()}"
    _STAND_IN.stand_in_write(listed.encode())
    with open(listed, encoding="utf-8") as stream:
        lines = [line.rstrip("\n").split("\t") for line in stream]
    return {name: int(count) for count, _, name in lines}


if __name__ == "__main__":
    main()
