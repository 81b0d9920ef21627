"""The three Beam jobs, run end to end: same bytes with one worker and two, skipping, rebuilding, rejects, errors."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from tests.support.preprocessing.small_run import files_below, run_all

from pipelines import shard_corpus, train_vocabulary
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from pipelines.jobs.arrow_files import read_table


def test_two_worker_processes_write_the_same_bytes(built: tuple[Path, str], tmp_path: Path) -> None:
    workspace, recipe = built
    run_all(recipe, "--workspace", str(tmp_path), "--set", "run.workers=2")
    assert files_below(tmp_path) == files_below(workspace)


def test_documents_add_up_and_rejects_say_why(built: tuple[Path, str]) -> None:
    workspace, _ = built
    manifest = read_manifest(str(workspace / "documents"))
    assert manifest is not None
    counts = manifest.statistics
    assert counts["documents_read"] == 64
    assert counts["documents_kept"] == 60 == counts["train_documents"] + counts["heldout_documents"]
    assert counts["rejected_by_reason"] == {"duplicate": 1, "too-short": 2, "undecodable": 1}
    with gzip.open(workspace / "documents" / "rejected.jsonl.gz", "rt") as stream:
        rejects = {row["source"]: row for row in map(json.loads, stream)}
    assert rejects["corpus/latin1.txt"]["detail"].startswith("not UTF-8 at byte 3")
    assert rejects["corpus/twin.txt"]["reason"] == "duplicate"
    assert 2 <= counts["heldout_documents"] <= 25


def test_examples_follow_the_contract(built: tuple[Path, str]) -> None:
    workspace, _ = built
    manifest = read_manifest(str(workspace / "examples"))
    assert manifest is not None
    tokens = (workspace / "vocabulary" / "vocab.txt").read_text().splitlines()
    for length, most in [(32, 5), (64, 10)]:
        statistics = manifest.statistics["lengths"][str(length)]
        rows = [
            row
            for split in ("train", "heldout")
            for file in manifest.files_of(split, f"length{length}")
            for row in read_table(str(workspace / "examples" / file.name)).to_pylist()
        ]
        assert len(rows) == statistics["examples"] > 100
        assert max(len(row["input_ids"]) for row in rows) <= length
        for row in rows:
            ids, positions = row["input_ids"], row["masked_lm_positions"]
            assert ids[0] == tokens.index("[CLS]")
            assert ids[row["segment_b_start"] - 1] == ids[-1] == tokens.index("[SEP]")
            assert positions == sorted(set(positions))
            assert len(positions) == min(most, max(1, round(0.15 * len(ids))))
            assert len(positions) == len(row["masked_lm_ids"])


def test_a_complete_stage_is_skipped_and_a_changed_one_rebuilt(
    built: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, recipe = built
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}
    run_all(recipe)
    assert capsys.readouterr().out.count("complete and unchanged") == 3
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*")} == before

    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(workspace), str(copy)], check=True)
    run_all(recipe, "--workspace", str(copy), "--set", "examples.passes=1")
    assert capsys.readouterr().out.count("complete and unchanged") == 2
    one, two = (read_manifest(str(path / "examples")) for path in (copy, workspace))
    assert one is not None
    assert two is not None
    assert one.statistics["lengths"]["32"]["examples"] * 2 == pytest.approx(
        two.statistics["lengths"]["32"]["examples"], rel=0.1
    )


def test_a_job_out_of_order_names_the_command_to_run(built: tuple[Path, str], tmp_path: Path) -> None:
    _, recipe = built
    with pytest.raises(InputError, match=r"run clozeworks documents first"):
        train_vocabulary.run([recipe, "--workspace", str(tmp_path)])


def command(job: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"pipelines.{job}", *arguments]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["absent.toml"], "error: absent.toml: no such recipe file; the ready-made ones are in flows/recipes/\n"),
        (["RECIPE", "--set", "documents.num_shard=2"], "unknown key; did you mean 'num_shards'?\n"),
        (["RECIPE", "--set", "documents.sources.0.inputs=['/nowhere/*.txt']"], "'/nowhere/*.txt' matches no file; "),
        (["RECIPE", "--no_such_option=1"], "error: --no_such_option=1: neither this command nor Beam has this option"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(built: tuple[Path, str], arguments: list[str], line: str) -> None:
    arguments = [built[1] if argument == "RECIPE" else argument for argument in arguments]
    result = subprocess.run(command("shard_corpus", *arguments), capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert line in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_killed_job_is_not_complete_and_the_next_run_gives_the_same_bytes(
    built: tuple[Path, str], tmp_path: Path
) -> None:
    workspace, recipe = built
    process = subprocess.Popen(
        command("shard_corpus", recipe, "--workspace", str(tmp_path), "--set", "run.workers=2"), start_new_session=True
    )
    parts = tmp_path / "documents.building" / "scratch" / "parts"
    deadline = time.monotonic() + 60
    while not parts.is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert read_manifest(str(tmp_path / "documents")) is None
    run_all(recipe, "--workspace", str(tmp_path))
    assert files_below(tmp_path) == files_below(workspace)


def test_documents_are_in_the_shard_of_their_hash(built: tuple[Path, str]) -> None:
    workspace, _ = built
    tables = [read_table(str(path)) for path in sorted((workspace / "documents").glob("*.arrow"))]
    ids = pa.concat_tables(table.select(["doc_id"]) for table in tables)["doc_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 60
    for table in tables:
        assert table["doc_id"].to_pylist() == sorted(table["doc_id"].to_pylist())


def test_a_part_written_in_many_rounds_gives_the_same_bytes(
    built: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, recipe = built
    monkeypatch.setattr("pipelines.documents.parts.ROUND_CHARACTERS", 3_000)
    shard_corpus.run([recipe, "--workspace", str(tmp_path)])
    assert files_below(tmp_path / "documents") == files_below(workspace / "documents")
