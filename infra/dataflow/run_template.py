"""Entry point of the Flex Template's launcher: turns its `--name=value` parameters into the command line of a job."""

from __future__ import annotations

import sys
import tempfile

from pipelines import build_examples, shard_corpus, train_vocabulary
from pipelines.commands.command_line import CommandParser
from pipelines.contract import storage
from pipelines.contract.errors import exit_code_of

JOBS = {job.__name__.removeprefix("pipelines."): job for job in (shard_corpus, train_vocabulary, build_examples)}


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--job", required=True, choices=JOBS)
    parser.add_argument("--recipe", required=True, help="recipe file, such as gs://bucket/recipe.toml")
    parser.add_argument("--workspace", required=True, help="directory of the run, such as gs://bucket/runs/one")
    parser.add_argument("--settings", default="", help="section.key=value, separated by ;")
    arguments, beam_arguments = parser.parse_known_args(argv)
    overrides = [part for setting in arguments.settings.split(";") if setting for part in ("--set", setting)]
    with tempfile.NamedTemporaryFile(suffix=".toml") as recipe:
        recipe.write(storage.read_bytes(arguments.recipe))
        recipe.flush()
        command = [recipe.name, "--workspace", arguments.workspace, *overrides]
        JOBS[arguments.job].run([*command, *beam_arguments])


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
