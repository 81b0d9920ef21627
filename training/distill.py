"""Distil an encoder into one of half its depth, by DistilBERT's recipe.

    clozeworks distill recipe.toml
    deepspeed --num_accelerators 2 --module training.distill recipe.toml

Reads <workspace>/examples and pretraining/encoder (or distillation.teacher), writes <workspace>/distillation:
encoder/ (a Hugging Face BertForMaskedLM), checkpoints/, metrics.jsonl and, last of all, manifest.json with sizes,
speeds and held-out scores of both. Run again, it resumes from the newest checkpoint, or ends at once if it is complete.
"""

from __future__ import annotations

import argparse

from pipelines.commands.command_line import CommandParser
from pipelines.commands.lifeline import follow_lifeline
from pipelines.commands.recipe_arguments import add_recipe_arguments, add_restart_argument, recipe_from_arguments
from training.resuming.checkpointed_stage import is_to_run
from training.resuming.process_end import StopRequest, exit_code_of_rank, run_and_leave
from training.stages.distillation import distillation_inputs
from training.stages.sections import DistillationSections


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks distill",
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: clozeworks distill flows/recipes/demo.toml",
    )
    add_recipe_arguments(parser)
    add_restart_argument(parser, "begin anew; what an earlier run left is kept under a numbered name")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher passes it
    parsed = parser.parse_args(arguments)
    follow_lifeline()
    inputs = distillation_inputs(DistillationSections.of(recipe_from_arguments(parsed)))
    if not is_to_run(inputs.key, inputs.directory, parsed.restart):
        return 0

    # torch and DeepSpeed take seconds to load: not before it is known that there is something to do.
    from training.distillation.run import DistillationRun
    from training.engine.processes import start_processes, stop_processes

    stop = StopRequest()
    processes = start_processes()
    try:
        return DistillationRun(inputs, processes, stop).run(parsed.restart)
    finally:
        stop_processes()


if __name__ == "__main__":
    run_and_leave(lambda: exit_code_of_rank(main))
