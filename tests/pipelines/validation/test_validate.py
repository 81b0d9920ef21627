"""`pipelines.validate`: valid stages pass, and each kind of damage is reported with its file and row."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines import build_examples
from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.manifest import FileRecord, Manifest, read_manifest, record_of, write_manifest
from pipelines.examples.arrow_rows import examples_of
from pipelines.examples.statistics import counts_of
from pipelines.jobs.arrow_files import read_table, write_table
from pipelines.validate import FaultError, main
from pipelines.validation.workspace import validate

NAME = "length32/train-00001-of-00004.arrow"
DOCUMENTS_NAME = "train-00000-of-00004.arrow"


@pytest.fixture
def workspace(built: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of a finished workspace, to damage."""
    copy = tmp_path / "workspace"
    subprocess.run(["cp", "-a", str(built[0]), str(copy)], check=True)
    return copy


@pytest.fixture(scope="session")
def other_options(built: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with full sentences, whole-word masks and length bins."""
    workspace = tmp_path_factory.mktemp("other_options") / "workspace"
    subprocess.run(["cp", "-a", str(built[0]), str(workspace)], check=True)
    settings = ["examples.next_sentence=false", "examples.masking=whole_word", "examples.num_length_bins=3"]
    build_examples.run([built[1], "--workspace", str(workspace), *(f"--set={setting}" for setting in settings)])
    return workspace


def stated(directory: Path) -> Manifest:
    manifest = read_manifest(str(directory))
    assert manifest is not None
    return manifest


def restate(directory: Path, name: str, **changes: Any) -> None:
    """Make the manifest's record of a file match its present contents, except for `changes`."""
    manifest = stated(directory)
    files: list[FileRecord] = []
    for file in manifest.files:
        if file.name == name:
            file = record_of(str(directory), name, file.rows, file.statistics).model_copy(update=changes)
        files.append(file)
    write_manifest(str(directory), manifest.model_copy(update={"files": tuple(files)}))


def rewrite(directory: Path, name: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change the rows of a file and make the manifest's record of it match again."""
    table = read_table(str(directory / name))
    rows = table.to_pylist()
    change(rows)
    write_table(str(directory / name), pa.Table.from_pylist(rows, schema=table.schema), 50)
    restate(directory, name)


Change = Callable[[dict[str, Any]], Any]


def setter(column: str, place: int | None, value: int) -> Change:
    def change(row: dict[str, Any]) -> None:
        if place is None:
            row[column] = value
        else:
            row[column][place] = value

    return change


def rewrite_row(directory: Path, name: str, change: Change, row: int) -> None:
    rewrite(directory, name, lambda rows: change(rows[row]))


def test_sound_stages_pass(workspace: Path, other_options: Path) -> None:
    assert [line.partition(": ")[2] for line in validate(str(workspace))] == [
        "documents in order: 6 files, 64 rows",
        "vocabulary in order: 3 files, 900 rows",
        "examples in order: 10 files, 1891 rows",
    ]
    assert validate(str(workspace / "examples") + "/")[0].endswith("rows")
    assert len(validate(str(other_options))) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setter("next_sentence_label", None, 2), "next_sentence_label is neither 0 nor 1"),
        (setter("input_ids", 0, 9), r"does not begin with \[CLS\]"),
        (setter("input_ids", -1, 9), r"does not end with \[SEP\]"),
        (setter("input_ids", 1, 300), "an id is not in the vocabulary"),
        (setter("masked_lm_ids", 0, 300), "a masked_lm_id is not in the vocabulary"),
        (setter("segment_b_start", None, 1), "segment_b_start leaves a segment without a token"),
        (lambda row: row.update(segment_b_start=row["segment_b_start"] + 1), r"segment A does not end with \[SEP\]"),
        (setter("masked_lm_positions", 0, 0), "a masked position is outside the text"),
        (setter("masked_lm_positions", -1, 31), "a masked position is outside the text"),
        (setter("masked_lm_ids", 0, 4), r"a \[MASK\] where no token is predicted"),
        (setter("masked_lm_ids", 0, 0), r"a \[PAD\] in the text"),
        (setter("masked_lm_ids", 0, 2), r"\[CLS\] within the text"),
        (setter("masked_lm_ids", 0, 3), r"a \[SEP\] within a segment"),
        (lambda row: row["masked_lm_positions"].reverse(), "masked_lm_positions are not ascending"),
        (lambda row: row["input_ids"].extend([9] * 40), "longer than max_seq_length"),
        (
            lambda row: (row["masked_lm_positions"].pop(0), row["masked_lm_ids"].pop(0)),
            r"the number of masked_lm_positions is not what masked_lm_prob asks for|a \[MASK\] where no token is pre",
        ),
    ],
)
def test_a_wrong_row_is_named(workspace: Path, change: Change, message: str) -> None:
    table = read_table(str(workspace / "examples" / NAME))
    row = next(row for row, ids in enumerate(table["input_ids"].to_pylist()) if len(ids) == 32 and row > 60)
    rewrite_row(workspace / "examples", NAME, change, row)
    with pytest.raises(FaultError, match=rf"{NAME}, row {row}: ({message})"):
        validate(str(workspace / "examples"))


def mask_half_a_word(row: dict[str, Any], tokens: list[str]) -> None:
    """Unmask the last piece of a masked word."""
    for number in reversed(range(len(row["masked_lm_ids"]))):
        if tokens[row["masked_lm_ids"][number]].startswith("##"):
            position = row["masked_lm_positions"].pop(number)
            row["input_ids"][position] = row["masked_lm_ids"].pop(number)
            return


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setter("next_sentence_label", None, 1), "next_sentence_label is not 0"),
        (setter("segment_b_start", None, 4), "segment_b_start is not the row's length"),
        (setter("input_ids", 1, 3), r"a \[SEP\] that closes no text"),
        (lambda row: (row["input_ids"].pop(2), row.update(segment_b_start=42)), "its length is not in the bin of 42"),
        (None, "a word is masked in part"),
    ],
)
def test_a_wrong_row_of_other_options_is_named(
    other_options: Path, tmp_path: Path, change: Change | None, message: str
) -> None:
    copy = tmp_path / "workspace"
    subprocess.run(["cp", "-a", str(other_options), str(copy)], check=True)
    tokens = (copy / "vocabulary" / "vocab.txt").read_text().splitlines()
    name = "length64/train-bin64-00001-of-00004.arrow"
    rows = read_table(str(copy / "examples" / name)).to_pylist()
    if change is None:
        row = next(
            row
            for row, each in enumerate(rows)
            if any(tokens[label].startswith("##") for label in each["masked_lm_ids"])
        )
        change = lambda row: mask_half_a_word(row, tokens)  # noqa: E731
    else:
        # A row of 43 tokens that is not masked where it is changed.
        row = next(
            row
            for row, each in enumerate(rows)
            if (len(each["input_ids"]) == 43 or "bin" not in message) and each["masked_lm_positions"][0] > 2
        )
    rewrite_row(copy / "examples", name, change, row)
    with pytest.raises(FaultError, match=rf"{name}, row {row}: {message}"):
        validate(str(copy / "examples"))


def test_rows_masked_under_dynamic_masking_are_named(workspace: Path, built: tuple[Path, str]) -> None:
    masked = read_table(str(workspace / "examples" / NAME)).to_pylist()
    build_examples.run([built[1], "--workspace", str(workspace), "--set", "examples.masking=dynamic"])
    validate(str(workspace))

    def change(rows: list[dict[str, Any]]) -> None:
        rows[7] = masked[7]

    rewrite(workspace / "examples", NAME, change)
    with pytest.raises(FaultError, match=rf"{NAME}, row 7: masked, where masking is dynamic"):
        validate(str(workspace / "examples"))


def test_a_statistic_that_does_not_add_up_is_named(workspace: Path) -> None:
    def flip(row: dict[str, Any]) -> None:
        row["next_sentence_label"] = 1 - row["next_sentence_label"]

    rewrite_row(workspace / "examples", NAME, flip, 0)
    with pytest.raises(FaultError, match=rf"{NAME}: the manifest states random_next = \d+, the files give \d+"):
        validate(str(workspace / "examples"))


@pytest.mark.parametrize("key", ["random_next_share", "length_histogram", "masked_share", "kept_token_share", "bins"])
def test_a_wrong_summary_is_named(workspace: Path, key: str) -> None:
    directory = workspace / "examples"
    raw = json.loads((directory / "manifest.json").read_text())
    raw["statistics"]["lengths"]["64"][key] = 0.5
    (directory / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(FaultError, match=rf"the manifest states lengths\.64\.{key} = 0\.5, the files give"):
        validate(str(directory))


def test_files_out_of_balance_missing_or_strange_are_named(workspace: Path) -> None:
    directory = workspace / "examples"
    lost = "length64/heldout-00000-of-00001.arrow"
    manifest = stated(directory)
    without = tuple(file for file in manifest.files if file.name != lost)
    write_manifest(str(directory), manifest.model_copy(update={"files": without}))
    with pytest.raises(FaultError, match=rf"{lost}: is missing from the manifest"):
        validate(str(directory))
    write_manifest(str(directory), manifest)

    def repeat(rows: list[dict[str, Any]]) -> None:
        rows.extend([row for row in rows if row["next_sentence_label"] == 0][:2])

    rows = read_table(str(directory / NAME)).num_rows
    rewrite(directory, NAME, repeat)
    with pytest.raises(FaultError, match=rf"{NAME}: the manifest states rows = {rows}, the files give {rows + 2}"):
        validate(str(directory))
    table = read_table(str(directory / NAME))
    restate(directory, NAME, rows=rows + 2, statistics=counts_of(examples_of(table), 4, 1))
    with pytest.raises(FaultError, match=r"train-0000.-of-00004\.arrow: \d+ rows where \S+ has \d+"):
        validate(str(directory))
    (directory / NAME).unlink()
    with pytest.raises(FaultError, match=rf"{NAME}: missing, though the manifest lists it"):
        validate(str(directory))


def test_another_schema_and_other_metadata_are_named(workspace: Path) -> None:
    path = workspace / "examples" / NAME
    table = read_table(str(path))
    metadata = {**table.schema.metadata, b"clozeworks.seed": b"1"}
    write_table(str(path), table.replace_schema_metadata(metadata), 8192)
    with pytest.raises(FaultError, match=rf"{NAME}: its metadata clozeworks\.seed is '1', by the manifests it should"):
        validate(str(workspace / "examples"))
    write_table(str(path), table.drop_columns(["segment_b_start"]), 8192)
    with pytest.raises(FaultError, match=rf"{NAME}: its schema is not the contract's"):
        validate(str(workspace / "examples"))


def test_any_flipped_byte_is_found(workspace: Path) -> None:
    directory = workspace / "examples"
    path = directory / NAME
    sound = path.read_bytes()
    named_row = 0
    for place in range(0, len(sound), len(sound) // 60):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x10]) + sound[place + 1 :])
        with pytest.raises(FaultError, match=NAME) as error:
            validate(str(directory))
        named_row += ", row " in str(error.value)
    assert named_row > 5
    path.write_bytes(sound[:-100])
    with pytest.raises(FaultError, match=rf"{NAME}: not a valid Arrow file"):
        validate(str(directory))


def test_a_document_that_was_changed_or_moved_is_named(workspace: Path) -> None:
    directory = workspace / "documents"
    rewrite_row(directory, DOCUMENTS_NAME, lambda row: row["sentences"].append("More."), 2)
    with pytest.raises(FaultError, match=rf"{DOCUMENTS_NAME}, row 2: doc_id is not the hash"):
        validate(str(directory))
    other = read_table(str(directory / "train-00001-of-00004.arrow")).to_pylist()[0]

    def replace(rows: list[dict[str, Any]]) -> None:
        rows[0] = other

    rewrite(directory, DOCUMENTS_NAME, replace)
    with pytest.raises(FaultError, match=rf"{DOCUMENTS_NAME}, row 0: belongs to train-00001"):
        validate(str(directory))


def test_rejects_that_do_not_add_up_are_named(workspace: Path) -> None:
    directory, name = workspace / "documents", "rejected.jsonl.gz"
    lines = gzip.decompress((directory / name).read_bytes()).decode().splitlines(keepends=True)
    (directory / name).write_bytes(gzip.compress("".join(lines[1:]).encode()))
    restate(directory, name)
    with pytest.raises(FaultError, match=rf"{name}: the manifest states rows = 4, the files give 3"):
        validate(str(directory))
    (directory / name).write_bytes(gzip.compress("".join([*lines[:2], lines[0], lines[0]]).encode()))
    restate(directory, name)
    with pytest.raises(FaultError, match="the manifest states rejected_by_reason"):
        validate(str(directory))
    (directory / name).write_bytes(gzip.compress("".join([lines[0], "no JSON\n"]).encode()))
    with pytest.raises(FaultError, match=rf"{name}, row 1: not JSON with a reason"):
        validate(str(directory))


def test_a_damaged_vocabulary_is_named(workspace: Path) -> None:
    directory = workspace / "vocabulary"
    path = directory / "vocab.txt"
    tokens = path.read_text().splitlines()
    for row, token, message in (
        (7, tokens[9], rf"vocab\.txt, row 9: '{tokens[9]}' is already in row 7"),
        (8, "", r"vocab\.txt, row 8: '' is not a token"),
        (4, "mask", r"vocab\.txt: has no \[MASK\]"),
        (9, "otherwise", r"tokenizer\.json: 'otherwise' has the id None, in vocab\.txt it is row 9"),
    ):
        path.write_text("".join(f"{one}\n" for one in [*tokens[:row], token, *tokens[row + 1 :]]))
        with pytest.raises(FaultError, match=message):
            validate(str(directory))
    path.write_text("".join(f"{one}\n" for one in tokens[:-1]))
    with pytest.raises(FaultError, match=r"vocabulary/\S+: the manifest states rows = 300, the files give 299"):
        validate(str(directory))
    with pytest.raises(FaultError, match=r"vocabulary_sha256 is '\w+', by the manifests it should be"):
        validate(str(workspace / "examples"))


def test_the_command_exits_with_0_1_and_2(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["validate", str(workspace)])
    assert exit_code_of(main) == 0
    assert capsys.readouterr().out.count("in order") == 3
    rewrite_row(workspace / "examples", NAME, setter("input_ids", 0, 9), 1)
    command = [sys.executable, "-m", "pipelines.validate", str(workspace)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("fault: ")
    (workspace / "examples" / "manifest.json").unlink()
    assert exit_code_of(main) == 2
    assert "run clozeworks examples first" in capsys.readouterr().err
    (workspace / "nothing").mkdir()
    with pytest.raises(InputError, match="neither a complete stage nor a workspace with one"):
        validate(str(workspace / "nothing"))
    with pytest.raises(InputError, match="nowhere: no such directory; give a workspace"):
        validate(str(workspace / "nowhere"))
