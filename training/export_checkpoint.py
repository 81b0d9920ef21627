"""Write a checkpoint of a pre-training as a Hugging Face directory, which `transformers` alone loads.

    clozeworks export workspaces/demo --checkpoint step-1000 --output step-1000

Any ZeRO stage, any number of ranks, also while the run continues; one process without a GPU does it. The weights are
the optimizer's own in fp32. To fine-tune, probe or extract features no export is needed: they take
workspaces/demo@step-1000 as an encoder.
"""

from __future__ import annotations

import argparse

from pipelines.commands.command_line import CommandParser
from pipelines.commands.process_exit import run_and_leave
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.recipe import RunConfig, read_recipe
from training.resuming.checkpoint_export import export_checkpoint
from training.stages.checkpoint_source import LATEST, find_checkpoint


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clozeworks export workspaces/demo --checkpoint step-1000 --output step-1000",
    )
    parser.add_argument(
        "source",
        help="workspace (directory or URI), recipe (.toml), or directory of a kept run such as "
        "workspaces/demo/pretraining.1",
    )
    parser.add_argument(
        "--checkpoint", default=LATEST, metavar="NAME", help="step-N, or latest, the newest one (default: %(default)s)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="local directory, absent or empty")
    parsed = parser.parse_args(arguments)
    if not storage.is_local(parsed.output):
        raise InputError(f"--output {parsed.output}: models are written to a local disk; give a local directory")
    place, run = parsed.source, RunConfig()
    if place.endswith(".toml"):
        run = read_recipe(place).section("run", RunConfig)
        place = run.workspace
    checkpoint = find_checkpoint(place, parsed.checkpoint)
    export_checkpoint(
        checkpoint, storage.local_path(parsed.output), lambda line: print(f"export: {line}", flush=True), run
    )
    return 0


if __name__ == "__main__":
    run_and_leave(lambda: exit_code_of(main))
