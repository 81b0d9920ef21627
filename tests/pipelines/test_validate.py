"""`pipelines.validate`: sound stages pass, and each kind of damage is named with its file and row."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines import storage
from pipelines.arrow_files import read_table, write_table
from pipelines.contract import read_manifest, record_of, write_manifest
from pipelines.recipe import InputError
from pipelines.validate import FaultError, validate

NAME = "length32/train-00001-of-00004.arrow"


@pytest.fixture
def workspace(built: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of a finished workspace, to be damaged."""
    copy = tmp_path / "workspace"
    subprocess.run(["cp", "-a", str(built[0]), str(copy)], check=True)
    return copy


def test_sound_stages_pass(workspace: Path) -> None:
    assert validate(str(workspace / "examples")).endswith("rows")
    assert "documents in order: 6 files" in validate(str(workspace / "documents"))


def rewrite(directory: Path, name: str, change: Callable[[dict[str, Any]], None], row: int) -> None:
    """Change one row of a file and make the manifest's record of it fit again."""
    table = read_table(str(directory / name))
    rows = table.to_pylist()
    change(rows[row])
    write_table(str(directory / name), pa.Table.from_pylist(rows, schema=table.schema), len(rows))
    manifest = read_manifest(str(directory))
    assert manifest is not None
    files = [
        record_of(str(directory), name, file.rows, file.statistics) if file.name == name else file
        for file in manifest.files
    ]
    write_manifest(str(directory), manifest.model_copy(update={"files": tuple(files)}))


def setter(column: str, place: int | None, value: int) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        if place is None:
            row[column] = value
        else:
            row[column][place] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setter("next_sentence_label", None, 2), "next_sentence_label is neither 0 nor 1"),
        (setter("input_ids", 0, 9), r"does not begin with \[CLS\]"),
        (setter("input_ids", -1, 9), r"does not end with \[SEP\]"),
        (setter("input_ids", 1, 300), "an id is not in the vocabulary"),
        (setter("segment_b_start", None, 1), "segment_b_start leaves a segment without a token"),
        (setter("masked_lm_positions", 0, 0), "a masked position lies outside the text"),
        (setter("masked_lm_positions", -1, 31), "a masked position lies outside the text"),
        (setter("masked_lm_ids", 0, 4), "a special token is predicted"),
        (lambda row: row["masked_lm_positions"].reverse(), "masked_lm_positions are not ascending"),
        (lambda row: row["input_ids"].extend([9] * 40), "longer than max_seq_length"),
        (
            lambda row: (row["masked_lm_positions"].pop(), row["masked_lm_ids"].pop()),
            "the number of masked_lm_positions is not what masked_lm_prob asks for",
        ),
    ],
)
def test_a_wrong_row_is_named(workspace: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    table = read_table(str(workspace / "examples" / NAME))
    row = next(row for row, ids in enumerate(table["input_ids"].to_pylist()) if len(ids) == 32 and row > 3)
    rewrite(workspace / "examples", NAME, change, row)
    with pytest.raises(FaultError, match=rf"{NAME}, row {row}: {message}"):
        validate(str(workspace / "examples"))


def test_a_statistic_that_does_not_add_up_is_named(workspace: Path) -> None:
    def flip(row: dict[str, Any]) -> None:
        row["next_sentence_label"] = 1 - row["next_sentence_label"]

    rewrite(workspace / "examples", NAME, flip, 0)
    with pytest.raises(FaultError, match=rf"{NAME}: the manifest states random_next = \d+, the files give \d+"):
        validate(str(workspace / "examples"))


def test_a_document_that_was_changed_or_moved_is_named(workspace: Path) -> None:
    directory = workspace / "documents"
    rewrite(directory, "train-00000-of-00004.arrow", lambda row: row["sentences"].append("More."), 2)
    with pytest.raises(FaultError, match=r"train-00000-of-00004\.arrow, row 2: doc_id is not the hash"):
        validate(str(directory))


def test_the_command_exits_with_1_and_2(workspace: Path) -> None:
    def run(directory: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.validate", str(directory)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    rewrite(workspace / "examples", NAME, setter("input_ids", 0, 9), 1)
    result = run(workspace / "examples")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("fault: ")
    storage.write_bytes(str(workspace / "documents" / "rejected.jsonl.gz"), b"x")
    assert run(workspace / "documents").returncode == 2
    with pytest.raises(InputError, match="holds the stage 'vocabulary'"):
        validate(str(workspace / "vocabulary"))
