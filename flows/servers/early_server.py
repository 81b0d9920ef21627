"""Start a run's private server before the modules of its flow are imported: either takes seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flows.parameters.flow_arguments import REQUESTS, flow_parser
from flows.parameters.whole_recipe import WholeRecipe
from flows.servers.local_server import begin
from pipelines.commands.recipe_arguments import recipe_from_arguments
from pipelines.contract import storage
from pipelines.contract.errors import InputError

HOME_NAME = "prefect"
_SETTINGS = ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH")
"""Variables that may name a server of the user's own, or another home."""
_SETTINGS_FILES = {
    "~/.prefect/profiles.toml": "",
    "prefect.toml": "",
    "pyproject.toml": "[tool.prefect",
    ".env": "PREFECT_",
}
"""Where else Prefect looks for them, and what is in a file with some."""


def begin_early(flow: str, words: Sequence[str]) -> None:
    """Start the server that the command will use, or nothing if that is not certain yet.

    Args:
        flow: name of its module.
        words: the command's arguments. If the recipe is not valid, nothing is started, and the command reports why.

    Raises:
        SystemExit: the parser refuses the arguments, as it would later.
    """
    if {"-h", "--help"} & set(words) or _prefect_has_settings():
        return
    try:
        arguments = flow_parser(flow).parse_args(words)
        whole = WholeRecipe.check(recipe_from_arguments(arguments), REQUESTS[flow].needs_corpus)
    except InputError:
        return
    if whole.is_local:
        begin(home_in_workspace(whole.run.workspace))


def home_in_workspace(workspace: str) -> str:
    """Directory of the private server's database in a local workspace."""
    return storage.join(storage.local_path(workspace), HOME_NAME)


def _prefect_has_settings() -> bool:
    if any(name in os.environ for name in _SETTINGS):
        return True
    files = ((Path(name).expanduser(), part) for name, part in _SETTINGS_FILES.items())
    return any(path.is_file() and part in path.read_text(errors="replace") for path, part in files)
