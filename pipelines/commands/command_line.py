"""The argument parser of all commands: a usage error is one line with exit code 2, and `--debug` shows tracebacks."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, ClassVar, NoReturn

from pipelines.contract.errors import DEBUG_VARIABLE, EXIT_BAD_INPUT
from pipelines.contract.shown_text import shown


class CommandParser(argparse.ArgumentParser):
    """argparse with one-line errors, without the usage text, and with `--debug`."""

    note: ClassVar[str] = ""
    """What `clozeworks` accepts for a verb in addition to its module; appended to the description."""

    def __init__(self, *arguments: Any, **settings: Any):
        settings["description"] = (settings.get("description") or "") + self.note
        super().__init__(*arguments, **settings)
        text = "show the traceback of a failure, here and in child processes"
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=text)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse; `--debug` is set in the environment, which child processes inherit."""
        parsed, left = super().parse_known_args(args, namespace)
        if getattr(parsed, "debug", False):
            os.environ[DEBUG_VARIABLE] = "1"
        return parsed, left

    def error(self, message: str) -> NoReturn:
        """Print the error and a hint, and exit."""
        print(f"error: {shown(message)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT)
