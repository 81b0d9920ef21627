"""What a part costs beyond its own work: pauses of the run that waits for it, and imports of its process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.dispatch import child_runs
from flows.dispatch.child_runs import POLL_SECONDS, Part


def _pause_after(monkeypatch: pytest.MonkeyPatch, *ages_seconds: float) -> float:
    monkeypatch.setattr(time, "monotonic", lambda: 10_000.0)
    part = Part("one", "child/working", {})
    children = [child_runs._Child(part, 0, started=10_000.0 - age) for age in ages_seconds]
    return child_runs._pause_seconds(children)


def test_a_short_part_is_asked_about_often_and_a_long_one_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = [_pause_after(monkeypatch, age) for age in (0.0, 1.0, 10.0, 30.0, 3_600.0)]
    assert pauses == sorted(pauses)
    assert pauses[0] <= 0.25
    assert pauses[-1] == POLL_SECONDS
    # The pause adds at most a twentieth to a part of some length.
    assert all(_pause_after(monkeypatch, age) <= max(0.25, 0.05 * age) for age in (5.0, 20.0, 100.0))
    # One that was started again is young, however long the others have run.
    assert _pause_after(monkeypatch, 3_600.0, 0.0) == pauses[0]


def test_the_process_of_a_part_does_not_import_a_database_for_a_server(repository: Path) -> None:
    code = (
        "import sys, flows.end_to_end, flows.tracking.stores as stores\n"
        "stores._errors_of('http://127.0.0.1:5000')\n"
        "sys.exit('sqlalchemy' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, check=False).returncode == 0
