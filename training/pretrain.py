"""Pre-train BERT: masked LM and next sentence, under DeepSpeed ZeRO.

    deepspeed --num_accelerators 2 --module training.pretrain recipe.toml
    clozeworks pretrain recipe.toml

Reads <workspace>/vocabulary and <workspace>/examples, writes <workspace>/pretraining: encoder/ (a Hugging Face
directory), checkpoints/, metrics.jsonl, deepspeed.json and, last of all, manifest.json. That manifest is what success
means: launchers lose exit codes. Run again, it resumes from the newest checkpoint, or ends at once if it is complete.
"""

from __future__ import annotations

import argparse

from pipelines.commands.command_line import CommandParser
from pipelines.commands.lifeline import follow_lifeline
from pipelines.commands.recipe_arguments import add_recipe_arguments, add_restart_argument, recipe_from_arguments
from training.resuming.checkpointed_stage import is_to_run
from training.resuming.process_end import StopRequest, exit_code_of_rank, run_and_leave
from training.stages.pretraining import pretraining_inputs
from training.stages.sections import PretrainingSections

_EXAMPLE = (
    "example: clozeworks pretrain recipe.toml --set pretraining.seed=7; on two ranks: "
    "deepspeed --num_accelerators 2 --module training.pretrain recipe.toml"
)


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks pretrain", description=__doc__.splitlines()[0] if __doc__ else None, epilog=_EXAMPLE
    )
    add_recipe_arguments(parser)
    add_restart_argument(parser, "begin anew; what an earlier run left is kept under a numbered name")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    follow_lifeline()
    inputs = pretraining_inputs(PretrainingSections.of(recipe_from_arguments(parsed)))
    if not is_to_run(inputs.key, inputs.directory, parsed.restart):
        return 0

    # torch and DeepSpeed take seconds to load: not before it is known that there is something to do.
    from training.engine.processes import start_processes, stop_processes
    from training.pretraining.run import PretrainingRun

    stop = StopRequest()
    processes = start_processes()
    try:
        return PretrainingRun(inputs, processes, stop).run(parsed.restart)
    finally:
        stop_processes()


if __name__ == "__main__":
    run_and_leave(lambda: exit_code_of_rank(main))
