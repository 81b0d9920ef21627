"""How a command's process is started."""

from __future__ import annotations

import gc
import subprocess
from pathlib import Path

import pytest

from pipelines.commands import process_start
from pipelines.commands.process_start import collect_as_usual, collect_rarely, command_of


def test_the_module_runs_as_main_with_its_arguments_and_rare_collections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shown.py").write_text(
        "import gc, sys\n"
        "from pipelines.commands.process_start import collect_as_usual\n"
        "print(__name__, sys.argv[1:], gc.get_threshold()[0])\n"
        "collect_as_usual()\n"
        "print(gc.get_threshold()[0])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    shown = subprocess.run(command_of("shown", ["r.toml", "--set", "a=1"]), capture_output=True, text=True, check=True)
    usual = gc.get_threshold()[0]
    assert shown.stdout == f"__main__ ['r.toml', '--set', 'a=1'] {process_start.YOUNG_OBJECTS}\n{usual}\n"


def test_cycles_are_still_found() -> None:
    before = gc.get_threshold()
    try:
        collect_rarely()
        assert gc.isenabled()
        assert gc.get_threshold() == (process_start.YOUNG_OBJECTS, *before[1:])
        collect_as_usual()
        assert gc.get_threshold() == before
    finally:
        gc.set_threshold(*before)
