"""A documents job that was killed goes on where it stood: what was finished stays, and the bytes are the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.preprocessing.small_run import RECIPE, write_corpus

from pipelines import shard_corpus
from pipelines.contract.manifest import StageKey, read_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.documents.shards import CompleteDocuments
from pipelines.results.builds import install_build
from pipelines.results.unfinished import count_finished
from pipelines.settings.documents import DocumentsConfig
from pipelines.stage_keys import documents_key

PART_BYTES = 6_000

# One worker in this process, which stops for good at the n-th call of a function; the test kills it then.
STOPPED_RUN = """
import sys, time
from pipelines import shard_corpus
from pipelines.documents import document as documents, parts, shards
documents.PART_BYTES = {part_bytes}
original, calls = {module}.{function}, []
def stopping(*arguments):
    calls.append(arguments)
    if len(calls) == {call}:
        print("stopped", flush=True)
        time.sleep(600)
    return original(*arguments)
{module}.{function} = stopping
shard_corpus.run(sys.argv[1:])
"""


def files_below(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def key_of(recipe: str, workspace: Path) -> StageKey:
    return documents_key(read_recipe(recipe).section("documents", DocumentsConfig), str(workspace))


def times_below(directory: Path) -> dict[str, int]:
    return {str(path.relative_to(directory)): path.stat().st_mtime_ns for path in directory.rglob("*.*")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workspace from a run that nothing disturbed, and its recipe."""
    root = tmp_path_factory.mktemp("resuming")
    write_corpus(root / "corpus")
    text = (root / "corpus/003.txt").read_text()
    (root / "corpus/near.txt").write_text(text + " And one more.")
    recipe = root / "recipe.toml"
    lines = RECIPE.format(workspace=root / "workspace", corpus=root / "corpus")
    recipe.write_text(lines.replace("heldout_share", "near_duplicates = {min_similarity = 0.7}\nheldout_share"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.documents.document.PART_BYTES", PART_BYTES)
        shard_corpus.run([str(recipe)])
    manifest = read_manifest(str(root / "workspace/documents"))
    assert manifest is not None
    assert manifest.statistics["rejected_by_reason"]["near-duplicate"] == 1
    return root / "workspace", str(recipe)


def run_until_stopped(recipe: str, workspace: Path, module: str, function: str, call: int) -> None:
    script = STOPPED_RUN.format(part_bytes=PART_BYTES, module=module, function=function, call=call)
    command = [sys.executable, "-c", script, recipe, "--workspace", str(workspace)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopped\n"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    ("module", "function", "call", "num_parts", "num_shards"),
    [
        ("parts", "finish_unit", 4, 3, 0),
        ("parts", "_part_batch", 23, 4, 0),
        ("shards", "write_table", 3, 9, 2),
        ("shards", "write_manifest", 1, 9, 5),
    ],
)
def test_a_killed_run_is_taken_up(
    undisturbed: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    function: str,
    call: int,
    num_parts: int,
    num_shards: int,
) -> None:
    workspace, recipe = undisturbed
    run_until_stopped(recipe, tmp_path, module, function, call)
    stage = tmp_path / "documents.building"
    assert read_manifest(str(tmp_path / "documents")) is None
    assert (count_finished(str(stage), "parts"), count_finished(str(stage), "shards")) == (num_parts, num_shards)
    finished = {
        name.removesuffix(".json") for name in times_below(stage) if name.endswith(".json") and "key" not in name
    }
    before = {
        name: time
        for name, time in times_below(stage).items()
        if any(name.startswith((f"{unit}.", unit.removeprefix("scratch/shards/"))) for unit in finished)
    }
    assert len(before) >= 3 * num_parts + 3 * num_shards

    monkeypatch.setattr("pipelines.documents.document.PART_BYTES", PART_BYTES)
    # The build stays where it is, to be looked at.
    monkeypatch.setattr("pipelines.documents.shards.install_build", lambda *_: None)
    monkeypatch.setattr("pipelines.documents.shards.require_manifest", lambda *_: read_manifest(str(stage)))
    shard_corpus.run([recipe, "--workspace", str(tmp_path)])
    line = f"documents: {num_parts} of 9 parts and {num_shards} of 5 shards were finished before and are kept\n"
    assert line in capsys.readouterr().out
    after = times_below(stage)
    assert {name: after[name] for name in before} == before
    monkeypatch.undo()
    install_build(str(tmp_path / "documents"), key_of(recipe, workspace))
    assert files_below(tmp_path / "documents") == files_below(workspace / "documents")


def test_a_unit_whose_file_is_not_whole_is_done_again(
    undisturbed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, recipe = undisturbed
    run_until_stopped(recipe, tmp_path, "shards", "write_manifest", 1)
    stage = tmp_path / "documents.building"
    (stage / "scratch/parts/000002.arrow").write_bytes(b"")
    (stage / "scratch/signatures/000003.arrow").unlink()
    next(stage.glob("train-00001*.arrow")).write_bytes(b"")
    monkeypatch.setattr("pipelines.documents.document.PART_BYTES", PART_BYTES)
    shard_corpus.run([recipe, "--workspace", str(tmp_path)])
    assert files_below(tmp_path / "documents") == files_below(workspace / "documents")


def test_other_settings_start_from_nothing(
    undisturbed: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, recipe = undisturbed
    run_until_stopped(recipe, tmp_path, "parts", "finish_unit", 4)
    shard_corpus.run([recipe, "--workspace", str(tmp_path), "--set", "documents.min_characters=10"])
    assert "finished before" not in capsys.readouterr().out
    assert not (tmp_path / "documents.building").exists()
    assert not (tmp_path / "documents/scratch").exists()


def test_the_last_step_may_be_repeated(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    """A runner that lost the answer of a step asks again; the scratch files are gone by then."""
    workspace, recipe = undisturbed
    shutil.copytree(workspace / "documents", tmp_path / "documents")
    key = key_of(recipe, workspace)
    (manifest,) = CompleteDocuments(str(tmp_path / "documents"), key).process([], [])
    assert manifest == read_manifest(str(workspace / "documents"))
    assert files_below(tmp_path / "documents") == files_below(workspace / "documents")
