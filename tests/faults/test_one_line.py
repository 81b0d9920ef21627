"""Anything that blocks a command is one line with the path: read-only disks, files in place of folders, odd recipes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import REPOSITORY
from tests.support.faults.scale import rounds
from tests.support.faults.small_disk import error_lines

pytestmark = pytest.mark.timeout(1_800)

DEMO = str(REPOSITORY / "flows" / "recipes" / "demo.toml")
LIGHT = ("pipelines.shard_corpus", "training.pretrain")
ALL = (
    *(*LIGHT, "pipelines.train_vocabulary", "pipelines.build_examples", "training.finetune", "training.distill"),
    *("training.sweep", "flows.preprocess", "flows.pretrain", "flows.end_to_end", "flows.status", "flows.estimate"),
)
COMMANDS = ALL[: rounds(len(LIGHT), len(ALL))]


def run(module: str, *arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    ended = subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    return ended.returncode, ended.stdout


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder in which no file can be created; permissions are enough if the user is not root."""
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    mounted = os.geteuid() == 0
    if mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)], check=True)
    yield folder
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("module", COMMANDS)
def test_a_workspace_that_cannot_be_made_is_one_line(module: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = {
        str(tmp_path / "file" / "ws"): "file",
        str(tmp_path / ("x" * 300) / "ws"): "x" * 100,
    }
    for workspace, expected in places.items():
        exit_code, output = run(module, DEMO, "--workspace", workspace)
        if exit_code == 0:  # status and estimate write nothing
            assert module in ("flows.status", "flows.estimate"), output
            continue
        (line,) = error_lines(output)
        assert exit_code == 2
        assert expected in line


@pytest.mark.slow
def test_a_read_only_place_is_one_line(read_only: Path) -> None:
    exit_code, output = run("pipelines.shard_corpus", DEMO, "--workspace", str(read_only / "ws"))
    (line,) = error_lines(output)
    assert exit_code == 2
    assert str(read_only / "ws") in line
    assert ("Read-only" if os.geteuid() == 0 else "ermission") in line


@pytest.mark.slow
@pytest.mark.parametrize("module", COMMANDS)
def test_a_recipe_that_cannot_be_read_is_one_line(module: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    for recipe, expected in (
        (str(folder), "is a directory"),
        ("/dev/null", "is a device"),
        ("absent\x1b.toml", "no such"),
    ):
        exit_code, output = run(module, recipe)
        (line,) = error_lines(output)
        assert exit_code == 2, output
        # `status` takes anything but a file as a workspace.
        assert expected in line or (module == "flows.status" and "no such directory" in line)
        assert "\x1b" not in output


@pytest.mark.slow
def test_missing_inputs_and_tasks_are_one_line(tmp_path: Path) -> None:
    inputs = 'documents.sources=[{inputs=["nowhere/*.txt"]}]'
    exit_code, output = run("pipelines.shard_corpus", DEMO, "--workspace", str(tmp_path / "ws"), "--set", inputs)
    (line,) = error_lines(output)
    assert exit_code == 2
    assert "'nowhere/*.txt' matches no file" in line


def test_debug_shows_where_it_happened(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.toml")
    for arguments, environment in ((("--debug",), {}), ((), {"CLOZEWORKS_DEBUG": "1"})):
        exit_code, output = run("training.pretrain", absent, *arguments, environment=environment)
        assert exit_code == 2
        assert "Traceback (most recent call last)" in output
        assert output.splitlines()[-1].startswith(f"error: {absent}: no such recipe file")
