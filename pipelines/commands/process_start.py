"""Start a command's process: what precedes the imports that take seconds.

python -m pipelines.commands.process_start pipelines.shard_corpus recipe.toml
"""

from __future__ import annotations

import gc
import runpy
import sys
from collections.abc import Sequence

_USUAL = gc.get_threshold()
YOUNG_OBJECTS = 100_000
"""How many new objects Python lets come into being before it looks for cycles; 700 by default."""


def collect_rarely() -> None:
    """Look for unreachable cycles of objects less often.

    An import makes a hundred thousand objects and hardly any cycle. Looking for them took 0.2 to 0.3 of the time of
    importing Prefect's server, Beam or DeepSpeed.
    """
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def collect_as_usual() -> None:
    """Undo `collect_rarely` once the imports are done.

    Without `gc.freeze`, after which extension modules report objects that they miss at the end of the process.
    """
    gc.set_threshold(*_USUAL)


def run_module(module: str, arguments: Sequence[str]) -> None:
    """Run a command's module as `python -m` does: it may end the process, and child processes see its `__main__`."""
    collect_rarely()
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def command_of(module: str, arguments: Sequence[str]) -> list[str]:
    """The command line of a new process that runs a command's module."""
    return [sys.executable, "-m", __spec__.name, module, *arguments]


if __name__ == "__main__":
    # Not the functions of `__main__`, whose settings nobody else sees.
    from pipelines.commands import process_start

    process_start.run_module(sys.argv[1], sys.argv[2:])
