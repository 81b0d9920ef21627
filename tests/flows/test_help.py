"""Every command that takes a command line answers --help with an example."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import FLOWS, VERBS

PACKAGES = ("pipelines", "training", "flows")
TAKES_ARGUMENTS = ("CommandParser(", "job_of(", "run_as_command(", "supervisor_parser(")
MAIN = 'if __name__ == "__main__":'

# One process for all: most of the time is spent on importing Beam and Prefect.
ASK_ALL = """
import contextlib, io, json, runpy, sys
told = {}
for module in sys.argv[1:]:
    sys.argv, output = [module, "--help"], io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__")
    told[module] = output.getvalue()
print(json.dumps(told))
"""


def commands(repository: Path) -> list[str]:
    """Modules with a main and a command line."""
    found = []
    for package in PACKAGES:
        for path in sorted((repository / package).rglob("*.py")):
            text = path.read_text()
            if MAIN in text and any(name in text for name in TAKES_ARGUMENTS):
                found.append(".".join(path.relative_to(repository).with_suffix("").parts))
    return found


@pytest.mark.slow
def test_every_command_has_help_with_an_example(repository: Path) -> None:
    modules = commands(repository)
    assert {"pipelines.shard_corpus", "training.pretrain", "flows.end_to_end", "flows.doctor"} <= set(modules)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK_ALL, *modules],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    without = [module for module in modules if "example:" not in told[module]]
    assert not without, f"--help without an example: {', '.join(without)}"
    flows = {f"flows.{flow}": f"run --only {flow}" for flow in FLOWS}
    for module, verb in {**{verb.module: name for name, verb in VERBS.items()}, **flows}.items():
        assert told[module].startswith(f"usage: clozeworks {verb} "), module
