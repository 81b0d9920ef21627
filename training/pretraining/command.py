"""The command of every stage trained by the loop; light to import, without torch."""

from __future__ import annotations

import argparse
import json
import os

from pipelines.commands.command_line import CommandParser
from pipelines.commands.lifeline import follow_lifeline
from pipelines.commands.recipe_arguments import add_recipe_arguments, add_restart_argument, recipe_from_arguments
from training.resuming.adoption import in_words
from training.resuming.checkpointed_stage import is_to_run
from training.resuming.process_end import StopRequest
from training.settings.tasks import load
from training.stages.continuing import Continuation, possible_continuation
from training.stages.objectives import OBJECTIVES
from training.stages.pretraining import PretrainingInputs


def train(stage: str, parser: CommandParser, arguments: list[str] | None) -> int:
    """Train a stage of OBJECTIVES from its command line; returns the exit code.

    Raises:
        InputError: the recipe, the inputs or the content of the stage's directory does not fit.
    """
    row = OBJECTIVES[stage]
    add_recipe_arguments(parser)
    add_restart_argument(parser, "start over; an earlier run is kept under a numbered name")
    if row.start is not None:
        _add_continue_argument(parser, stage)
        parser.add_argument("--reference", metavar="CURVE", help="curve to compare with, as pretraining.reference")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # DeepSpeed's launcher passes it
    parsed = parser.parse_args(arguments)
    if getattr(parsed, "reference", None) is not None:
        parsed.overrides.append(f"pretraining.reference={json.dumps(parsed.reference, ensure_ascii=False)}")
    follow_lifeline()
    inputs, continuation = row.inputs(recipe_from_arguments(parsed)), None
    if row.start is not None:
        inputs, continuation = row.start(inputs, parsed.continued, parsed.restart)
    if not is_to_run(inputs.key, inputs.directory, parsed.restart):
        return 0
    if isinstance(inputs, PretrainingInputs):
        _show_start(inputs, continuation, parsed.restart)

    # torch and DeepSpeed take seconds to load: only if there is something to do.
    from training.engine.processes import start_processes, stop_processes
    from training.pretraining.run import TrainingRun

    open_objective = load(row.opener(inputs))
    stop = StopRequest()
    processes = start_processes()
    try:
        return TrainingRun(open_objective(inputs, processes), processes, stop).run(parsed.restart, continuation)
    finally:
        stop_processes()


def _add_continue_argument(parser: argparse.ArgumentParser, stage: str) -> None:
    parser.add_argument(
        "--continue",
        dest="continued",
        nargs="?",
        const="",
        metavar="NAME",
        help="start from the newest checkpoint of the finished run that this recipe can share, instead of step 0; with "
        f"a NAME such as {stage}.1, from that kept result",
    )


def _show_start(inputs: PretrainingInputs, continuation: Continuation | None, restart: str | None) -> None:
    """Print where a run starts that does not resume: rank 0 only."""
    if os.environ.get("RANK", "0") != "0":
        return
    if continuation is not None:
        lines = list(in_words(continuation, inputs.pretraining))
    elif restart is None and (possible := possible_continuation(inputs)) is not None:
        step = possible.place.step
        lines = [f"with --continue, a new run starts from step {step:,} of the finished one instead of step 0"]
    else:
        return
    for line in lines:
        print(f"{inputs.key.stage}: {line}", flush=True)
