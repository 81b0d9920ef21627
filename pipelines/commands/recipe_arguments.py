"""Arguments that the commands of a recipe share."""

from __future__ import annotations

import argparse
import json

from pipelines.contract.recipe import Recipe, read_recipe
from pipelines.results.marks import RESTART


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every stage's command shares: the recipe's path, `--set` and `--workspace`."""
    parser.add_argument("recipe", help="recipe file (TOML), such as flows/recipes/demo.toml")
    add_override_arguments(parser)


def add_override_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--set` and `--workspace`, which change what a recipe says."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="override one setting of the recipe; may be repeated",
    )
    parser.add_argument("--workspace", help="directory of the run; overrides run.workspace")


def recipe_from_arguments(arguments: argparse.Namespace) -> Recipe:
    """Read the recipe that `add_recipe_arguments` asked for, overrides applied."""
    return read_recipe(arguments.recipe, overrides_from_arguments(arguments))


def overrides_from_arguments(arguments: argparse.Namespace) -> list[str]:
    """What `add_override_arguments` asked for, as `section.key=value`, the workspace last."""
    overrides = list(arguments.overrides)
    if arguments.workspace is not None:
        overrides.append(f"run.workspace={json.dumps(arguments.workspace, ensure_ascii=False)}")
    return overrides


def add_restart_argument(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add `--restart`; with a name, the same command given again resumes the build that it began."""
    explained = "with a NAME, the same command given again resumes what it began"
    parser.add_argument("--restart", nargs="?", const=RESTART, metavar="NAME", help=f"{help_text}; {explained}")
