"""Arguments that the commands of a recipe share."""

from __future__ import annotations

import argparse
import json

from pipelines.contract.recipe import Recipe, read_recipe
from pipelines.results.marks import RESTART


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every stage's command: the recipe's path, `--set` and `--workspace`."""
    parser.add_argument("recipe", help="recipe file (TOML), such as flows/recipes/demo.toml")
    add_override_arguments(parser)


def add_override_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--set` and `--workspace`, which override a recipe's settings."""
    add_set_argument(parser)
    parser.add_argument("--workspace", help="directory of the run; overrides run.workspace")


def add_set_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--set`, whose values are `overrides`."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="override one setting of the recipe; may be repeated",
    )


def recipe_from_arguments(arguments: argparse.Namespace) -> Recipe:
    """Read the recipe given by the arguments of `add_recipe_arguments`, overrides applied."""
    return read_recipe(arguments.recipe, overrides_from_arguments(arguments))


def overrides_from_arguments(arguments: argparse.Namespace) -> list[str]:
    """The arguments of `add_override_arguments` as `section.key=value`, the workspace last."""
    overrides = list(arguments.overrides)
    if arguments.workspace is not None:
        overrides.append(f"run.workspace={json.dumps(arguments.workspace, ensure_ascii=False)}")
    return overrides


def add_restart_argument(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add `--restart`; with a name, repeating the same command resumes the build that it started."""
    explained = "with a NAME, repeating the same command resumes the build that it started"
    parser.add_argument("--restart", nargs="?", const=RESTART, metavar="NAME", help=f"{help_text}; {explained}")
