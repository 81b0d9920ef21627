"""Show the state and progress of each stage of a run, and the command that resumes it.

clozeworks status workspaces/demo
clozeworks status flows/recipes/demo.toml --watch 10
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import textwrap
import time
from dataclasses import asdict

from flows.console.tables import print_table
from flows.inspection.workspace import NEW, StageStatus, statuses_of_recipe, statuses_of_workspace
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.commands.command_line import CommandParser
from pipelines.commands.recipe_arguments import add_override_arguments, overrides_from_arguments
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.recipe import read_recipe
from pipelines.contract.workspace import DISTILLATION, DOCUMENTS, EXAMPLES, FINETUNING, PRETRAINING, VOCABULARY

DETAIL_WIDTH = 160
"""Maximum characters shown of a detail: a changed list of sources would fill the screen; --json shows all."""

_COMMANDS = {
    DOCUMENTS: "documents",
    VOCABULARY: "vocabulary",
    EXAMPLES: "examples",
    PRETRAINING: "run --only pretrain",
    DISTILLATION: "run --only distill",
    FINETUNING: "run --only finetune",
}
_STYLES = {"complete": "green", "stale": "yellow", "unfinished": "cyan", "missing": "dim", "kept": "blue"}
_ANY_RECIPE = "RECIPE.toml"


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks status",
        description="Show the state and progress of each stage, and the next command. Given a recipe instead of a "
        "workspace, also show whether the results still match its settings.",
        epilog="example: clozeworks status workspaces/demo --watch 10",
    )
    parser.add_argument("target", help="directory of a run, or a recipe file (.toml)")
    add_override_arguments(parser)
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="refresh every SECONDS seconds, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parsed = parser.parse_args(arguments)
    if parsed.watch is not None and not parsed.watch > 0:
        raise InputError(f"--watch {parsed.watch:g}: give seconds above 0")
    overrides = overrides_from_arguments(parsed)
    try:
        while True:
            statuses, following = _look(parsed.target, overrides)
            if parsed.json:
                print(json.dumps({"stages": [asdict(status) for status in statuses], "next": following}), flush=True)
            else:
                _show(statuses, following, clear=bool(parsed.watch))
            if not parsed.watch:
                return 0
            time.sleep(parsed.watch)
    except KeyboardInterrupt:
        return 0


def _look(target: str, overrides: list[str]) -> tuple[list[StageStatus], str]:
    """The stages, and the next command."""
    if target.endswith(".toml") or os.path.isfile(target):
        whole = WholeRecipe.check(read_recipe(target, overrides))
        statuses, workspace = statuses_of_recipe(whole), whole.run.workspace
        recipe = shlex.join([target, *(part for override in overrides for part in ("--set", override))])
    elif overrides:
        raise InputError(f"{target}: --set and --workspace need a recipe (.toml) as target")
    else:
        statuses, workspace, recipe = statuses_of_workspace(target), target, _ANY_RECIPE
    return statuses, next_command(statuses, workspace, recipe)


def next_command(statuses: list[StageStatus], workspace: str, recipe: str) -> str:
    """The command that builds the first incomplete stage; if all are complete, the one that shows them."""
    # A workspace may use an encoder from elsewhere: then only trials exist, and the stages before them are not
    # needed. The stage that is missing after the last result comes next.
    there = [index for index, status in enumerate(statuses) if status.state != "missing"]
    last = there[-1] if there and recipe == _ANY_RECIPE else -1
    needed = [status for index, status in enumerate(statuses) if status.state != "missing" or index > last]
    for status in needed:
        if status.state not in ("complete", "kept"):
            return f"clozeworks {_COMMANDS[status.name.removesuffix(NEW).split('/')[0]]} {recipe}"
    # The pages of a run in an object store are those of its tracking server.
    return f"clozeworks {'ui' if storage.is_local(workspace) else 'validate'} {shlex.quote(workspace)}"


def _show(statuses: list[StageStatus], following: str, clear: bool) -> None:
    if clear and sys.stdout.isatty():
        print("\033[H\033[2J", end="")
    rows = [
        [status.name, status.state, textwrap.shorten(status.detail, DETAIL_WIDTH, placeholder=" ...")]
        for status in statuses
    ]
    print_table(["stage", "state", ""], rows, _STYLES)
    print(f"next: {following}", flush=True)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
