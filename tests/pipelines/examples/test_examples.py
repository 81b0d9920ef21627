"""Job 3, run end to end with each of its options; killed, resumed and retried."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.preprocessing.small_run import files_below

from pipelines import build_examples
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, read_manifest
from pipelines.contract.schemas import SPLITS
from pipelines.jobs.arrow_files import read_table
from pipelines.validation.workspace import validate


@pytest.fixture
def workspace(built: tuple[Path, str], tmp_path: Path) -> Path:
    """Finished documents and a vocabulary, without examples."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    for stage in ("documents", "vocabulary"):
        subprocess.run(["cp", "-a", str(built[0] / stage), str(workspace)], check=True)
    return workspace


def arguments(recipe: str, workspace: Path, **settings: Any) -> list[str]:
    result = [recipe, "--workspace", str(workspace)]
    for key, value in settings.items():
        result += ["--set", f"examples.{key}={str(value).lower() if isinstance(value, bool) else value}"]
    return result


def manifest_of(workspace: Path) -> Manifest:
    manifest = read_manifest(str(workspace / "examples"))
    assert manifest is not None
    return manifest


def rows_of(workspace: Path, directory: str) -> list[dict[str, Any]]:
    return [
        row
        for split in SPLITS
        for file in manifest_of(workspace).files_of(split, directory)
        for row in read_table(str(workspace / "examples" / file.name)).to_pylist()
    ]


def restored(row: dict[str, Any]) -> list[int]:
    ids = list(row["input_ids"])
    for position, label in zip(row["masked_lm_positions"], row["masked_lm_ids"], strict=True):
        ids[position] = label
    return ids


def test_length_bins_hold_the_same_rows_as_no_bins(built: tuple[Path, str], workspace: Path) -> None:
    build_examples.run(arguments(built[1], workspace, num_length_bins=5))
    validate(str(workspace))
    manifest = manifest_of(workspace)
    assert "length64/train-bin25-00003-of-00004.arrow" in [file.name for file in manifest.files]
    assert len(manifest.files) == 2 * 5 * 5
    for length in (32, 64):
        one, other = (rows_of(each, f"length{length}") for each in (built[0], workspace))
        assert sorted(map(str, one)) == sorted(map(str, other))
        statistics, before = (manifest_of(each).statistics["lengths"][str(length)] for each in (workspace, built[0]))
        assert list(statistics["bins"]) == [f"{length * number // 5:02d}" for number in range(1, 6)]
        assert sum(one["train_tokens"] for one in statistics["bins"].values()) == before["splits"]["train"]["tokens"]
        assert {**statistics, "bins": None} == {**before, "bins": None}


def test_dynamic_rows_are_those_of_static_masking_before_they_were_masked(
    built: tuple[Path, str], workspace: Path
) -> None:
    build_examples.run(arguments(built[1], workspace, masking="dynamic"))
    validate(str(workspace))
    static, dynamic = (rows_of(each, "length64") for each in (built[0], workspace))
    assert [restored(row) for row in static] == [row["input_ids"] for row in dynamic]
    assert all(row["masked_lm_positions"] == row["masked_lm_ids"] == [] for row in dynamic)
    statistics = manifest_of(workspace).statistics["lengths"]["64"]
    assert statistics["masked"] == statistics["masked_share"] == 0


def test_full_sentences_with_whole_words_in_bins_with_two_workers(
    built: tuple[Path, str], workspace: Path, tmp_path: Path
) -> None:
    settings = {"next_sentence": False, "masking": "whole_word", "num_length_bins": 3}
    build_examples.run(arguments(built[1], workspace, **settings))
    validate(str(workspace))
    tokens = (workspace / "vocabulary" / "vocab.txt").read_text().splitlines()
    sep = tokens.index("[SEP]")
    rows = rows_of(workspace, "length64")
    assert all(row["segment_b_start"] == len(row["input_ids"]) for row in rows)
    assert any(sep in restored(row)[1:-1] for row in rows)
    statistics = manifest_of(workspace).statistics["lengths"]["64"]
    assert statistics["random_next"] == 0
    # Both passes hold every token once.
    texts = sorted(token for row in rows for token in restored(row)[1:-1] if token != sep)
    assert texts[::2] == texts[1::2]

    other = tmp_path / "other"
    other.mkdir()
    for stage in ("documents", "vocabulary"):
        (other / stage).symlink_to(workspace / stage)
    build_examples.run([*arguments(built[1], other, **settings), "--set", "run.workers=2"])
    assert files_below(other / "examples") == files_below(workspace / "examples")


def test_files_are_balanced_and_hold_rows_of_every_shard(built: tuple[Path, str]) -> None:
    for length in (32, 64):
        files = manifest_of(built[0]).files_of("train", f"length{length}")
        rows = [file.rows for file in files]
        tokens = [file.statistics["tokens"] for file in files]
        assert max(rows) - min(rows) <= 1
        # A hundred rows a file: one row is a hundredth.
        assert max(tokens) - min(tokens) <= 2 * length
        (stated,) = manifest_of(built[0]).statistics["lengths"][str(length)]["bins"].values()
        mean = sum(tokens) / len(tokens)
        assert stated["most_off_mean_tokens"] == pytest.approx(max(abs(x - mean) for x in tokens) / mean, abs=1e-6)


def test_many_shards_exchange_rows_within_groups(
    built: tuple[Path, str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.examples.balancing.MOST_FILES_PER_GROUP", 3)
    build_examples.run(arguments(built[1], workspace, num_length_bins=2))
    validate(str(workspace))
    for length in (32, 64):
        one, other = (rows_of(each, f"length{length}") for each in (built[0], workspace))
        assert sorted(map(str, one)) == sorted(map(str, other))


def test_settings_that_do_not_go_together_are_refused(built: tuple[Path, str], workspace: Path) -> None:
    with pytest.raises(InputError, match=r"short_seq_prob = 0\.3 has no meaning for next_sentence = false"):
        build_examples.run(arguments(built[1], workspace, next_sentence=False, short_seq_prob=0.3))
    with pytest.raises(InputError, match="num_length_bins = 33 is more than max_seq_length = 32"):
        build_examples.run(arguments(built[1], workspace, num_length_bins=33))
    with pytest.raises(InputError, match=r"examples\.masking"):
        build_examples.run(arguments(built[1], workspace, masking="whole-word"))


def test_a_job_that_dies_again_and_again_gets_there_with_the_same_bytes(
    built: tuple[Path, str], workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = workspace / "examples"
    whole, writes_left, written = storage.atomic_output, 0, []

    @contextmanager
    def dying(uri: str) -> Iterator[Any]:
        nonlocal writes_left
        with whole(uri) as stream:
            yield stream
            writes_left -= 1
            if writes_left < 0:
                raise RuntimeError("the machine is gone")
        written.append(uri)

    monkeypatch.setattr(storage, "atomic_output", dying)
    deaths = 0
    while read_manifest(str(workspace / "examples")) is None:
        writes_left = 11
        building = workspace / "examples.building" / "length32"
        if building.exists():
            (building / "train-00000-of-00004.arrow.0123.tmp").write_bytes(b"half")
        try:
            build_examples.run(arguments(built[1], workspace))
        except RuntimeError:
            deaths += 1
    assert deaths == 3
    assert capsys.readouterr().out.count("were finished before and are kept") == 3
    assert files_below(examples) == files_below(built[0] / "examples")
    # At most the file whose record was not yet written was done again, once a death.
    assert len(written) - len(set(written)) <= 2 * deaths


def workers_of(pid: int) -> list[int]:
    """The worker processes below a job's own."""
    children = [
        int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
    ]
    below = [worker for child in children for worker in workers_of(child)]
    return below or children


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.parametrize("victim", ["the job with all workers", "one worker"])
def test_a_killed_job_resumes_at_what_is_not_written(built: tuple[Path, str], workspace: Path, victim: str) -> None:
    command = [sys.executable, "-m", "pipelines.build_examples", *arguments(built[1], workspace)]
    process = subprocess.Popen([*command, "--set", "run.workers=2"], start_new_session=True, stderr=subprocess.DEVNULL)
    examples = workspace / "examples.building"
    deadline = time.monotonic() + 120
    while not list(examples.glob("scratch/files/*/*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    if victim == "one worker":
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGKILL)
    if victim == "one worker":
        # The run is repeated, and keeps what was finished (tests/faults/test_dead_processes.py).
        assert process.wait(timeout=120) == 0
        assert files_below(workspace / "examples") == files_below(built[0] / "examples")
        return
    assert process.wait(timeout=120) != 0
    assert read_manifest(str(workspace / "examples")) is None
    units = list(examples.glob("scratch/files/*/*.json"))
    assert units
    kept = {
        path: path.stat().st_mtime_ns
        for path in (examples / unit.relative_to(examples / "scratch/files").with_suffix("") for unit in units)
    }
    build_examples.run(arguments(built[1], workspace))
    final = {workspace / "examples" / path.relative_to(examples): time_ns for path, time_ns in kept.items()}
    assert {path: path.stat().st_mtime_ns for path in final} == final
    assert files_below(workspace / "examples") == files_below(built[0] / "examples")
