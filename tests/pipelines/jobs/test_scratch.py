"""Temporary files of a killed run are removed by the next one, and those of a live run never are."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from pipelines.jobs import scratch
from pipelines.jobs.scratch import remove_abandoned, scratch_directory

OWNER = """
    import sys, tempfile, time
    from pipelines.jobs.scratch import scratch_directory
    with scratch_directory() as path:
        folder = tempfile.mkdtemp(prefix="beam-pipeline-temp")
        print(path, folder, flush=True)
        time.sleep(600)
"""


def test_temporary_files_lie_in_it_and_go_with_it() -> None:
    before = tempfile.gettempdir()
    with scratch_directory() as path:
        assert os.path.dirname(path) == before
        assert os.path.dirname(tempfile.mkdtemp()) == path
    assert not os.path.exists(path)
    assert tempfile.gettempdir() == before


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_YOUNG_SECONDS", 0.0)
    (tmp_path / "beam-pipeline-tempforeign").mkdir()
    (tmp_path / "clozeworks-scratch-link").symlink_to(tmp_path / "beam-pipeline-tempforeign")
    command = [sys.executable, "-c", textwrap.dedent(OWNER)]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout is not None
            path, folder = owner.stdout.readline().decode().split()
            assert os.path.dirname(folder) == path
            assert remove_abandoned(str(tmp_path)) == []
        finally:
            owner.kill()
    assert os.path.isdir(folder)
    assert remove_abandoned(str(tmp_path)) == [path]
    assert sorted(os.listdir(tmp_path)) == ["beam-pipeline-tempforeign", "clozeworks-scratch-link"]


def test_a_folder_that_is_only_being_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "clozeworks-scratch-new").mkdir()
    assert remove_abandoned(str(tmp_path)) == []
