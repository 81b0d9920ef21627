"""Remove an earlier result that was kept: clozeworks remove workspaces/demo pretraining.1

A run never deletes finished pre-trainings and distillations: it keeps them under a numbered name, which
`clozeworks status` lists. This command deletes one of them, after confirmation.
"""

from __future__ import annotations

import os
import re
import sys

from flows.inspection.workspace import kept_status
from pipelines.commands.command_line import CommandParser
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.workspace import DISTILLATION, PRETRAINING
from pipelines.results.kept import delete_directory, kept_directories
from pipelines.results.locks import workspace_lock

_STAGES = (PRETRAINING, DISTILLATION)
_NAME = re.compile(rf"({'|'.join(_STAGES)})\.\d+")


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks remove",
        description="Delete an earlier result that was kept under a numbered name.",
        epilog="example: clozeworks remove workspaces/demo pretraining.1",
    )
    parser.add_argument("workspace", help="directory of the run")
    parser.add_argument("name", help="name of the kept result, as clozeworks status lists it")
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parsed = parser.parse_args(arguments)
    remove(parsed.workspace, parsed.name, parsed.yes)
    return 0


def remove(workspace: str, name: str, is_sure: bool) -> None:
    """Delete a kept result, after the user has confirmed it.

    Raises:
        InputError: there is no kept result of this name, or the user did not confirm.
    """
    if storage.is_local(workspace) and not os.path.isdir(storage.local_path(workspace)):
        raise InputError(f"{workspace}: no such directory; give the workspace that contains the result")
    # A stage may be a link to a directory of another name.
    kept = {
        f"{stage}.{directory.rpartition('.')[2]}": directory
        for stage in _STAGES
        for directory in kept_directories(storage.join(workspace, stage))
    }
    if not _NAME.fullmatch(name) or name not in kept:
        there = f"there are: {', '.join(kept)}" if kept else "there are none"
        raise InputError(f"{workspace}: no kept result named {name!r}; {there}")
    directory = kept[name]
    print(f"{directory}: {kept_status(directory, storage.join(workspace, name.partition('.')[0])).detail}")
    if not is_sure:
        if not sys.stdin.isatty():
            raise InputError(f"{directory}: not removed: no terminal for the confirmation; add --yes")
        if input("Delete it permanently? [y/N] ").strip().lower() not in ("y", "yes"):
            raise InputError(f"{directory}: not removed")
    with workspace_lock(workspace, name.partition(".")[0]):
        delete_directory(directory)
    print(f"{directory}: removed")


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
