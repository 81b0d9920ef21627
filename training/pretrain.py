"""Pre-train BERT: masked LM and next sentence, under DeepSpeed ZeRO.

    deepspeed --num_accelerators 2 --module training.pretrain recipe.toml
    python -m training.pretrain recipe.toml

Reads <workspace>/vocabulary and <workspace>/examples, writes <workspace>/pretraining: encoder/ (a Hugging Face
directory), checkpoints/, metrics.jsonl, deepspeed.json and, last of all, manifest.json. That manifest is what success
means: launchers lose exit codes. Run again, it resumes from the newest checkpoint, or ends at once if it is complete.
"""

from __future__ import annotations

import argparse
import os
import time

from pipelines import storage
from pipelines.contract import read_manifest
from pipelines.lifeline import follow_lifeline
from pipelines.recipe import EXIT_BAD_INPUT, InputError, add_recipe_arguments, exit_code_of, recipe_from_arguments
from training.checkpoint import CHECKPOINTS_DIRECTORY, refuse_foreign_checkpoints
from training.process_end import StopRequest, run_and_leave
from training.stages import pretraining_inputs

_SECONDS_FOR_FIRST_RANK = 3.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="training.pretrain", description=__doc__.splitlines()[0] if __doc__ else None)
    add_recipe_arguments(parser)
    parser.add_argument("--restart", action="store_true", help="delete what an earlier run left and begin anew")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    follow_lifeline()
    inputs = pretraining_inputs(recipe_from_arguments(parsed))
    is_first = os.environ.get("RANK", "0") == "0"
    difference = inputs.key.difference(inputs.directory)
    if difference is None and not parsed.restart:
        if is_first:
            print(f"pretraining: complete and up to date in {inputs.directory}", flush=True)
        return 0
    if read_manifest(inputs.directory) is None and not parsed.restart:
        refuse_foreign_checkpoints(storage.join(inputs.directory, CHECKPOINTS_DIRECTORY), inputs.key)
    if is_first:
        print(f"pretraining: {difference or 'restarted'}; starting", flush=True)

    # torch and DeepSpeed take seconds to load: not before it is known that there is something to do.
    from training.engine import start_processes, stop_processes
    from training.pretraining import PretrainingRun

    stop = StopRequest()
    processes = start_processes()
    try:
        return PretrainingRun(inputs, processes, stop).run(parsed.restart)
    finally:
        stop_processes()


def _quiet_main() -> int:
    """Every rank meets the same mistake; one of them tells it."""
    if os.environ.get("RANK", "0") == "0":
        return exit_code_of(main)
    try:
        return main()
    except InputError:
        # The launcher ends all ranks as soon as one fails: leave rank 0 the time to say why.
        time.sleep(_SECONDS_FOR_FIRST_RANK)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    run_and_leave(_quiet_main)
