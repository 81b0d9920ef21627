"""The command of every stage trained by the loop; light to import, without torch."""

from __future__ import annotations

import argparse
import importlib

from pipelines.commands.command_line import CommandParser
from pipelines.commands.lifeline import follow_lifeline
from pipelines.commands.recipe_arguments import add_recipe_arguments, add_restart_argument, recipe_from_arguments
from training.resuming.checkpointed_stage import is_to_run
from training.resuming.process_end import StopRequest
from training.stages.objectives import OBJECTIVES


def train(stage: str, parser: CommandParser, arguments: list[str] | None) -> int:
    """Train a stage of OBJECTIVES from its command line; returns the exit code.

    Raises:
        InputError: the recipe, the inputs or the content of the stage's directory does not fit.
    """
    add_recipe_arguments(parser)
    add_restart_argument(parser, "start over; an earlier run is kept under a numbered name")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # DeepSpeed's launcher passes it
    parsed = parser.parse_args(arguments)
    follow_lifeline()
    row = OBJECTIVES[stage]
    inputs = row.inputs(recipe_from_arguments(parsed))
    if not is_to_run(inputs.key, inputs.directory, parsed.restart):
        return 0

    # torch and DeepSpeed take seconds to load: only if there is something to do.
    from training.engine.processes import start_processes, stop_processes
    from training.pretraining.run import TrainingRun

    module, _, function = row.opener.partition(":")
    open_objective = getattr(importlib.import_module(module), function)
    stop = StopRequest()
    processes = start_processes()
    try:
        return TrainingRun(open_objective(inputs, processes), processes, stop).run(parsed.restart)
    finally:
        stop_processes()
