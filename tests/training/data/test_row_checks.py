"""Rows are checked where they enter training: a wrong one is refused, with its file and row, before a model sees it."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, record_of
from pipelines.contract.schemas import examples_schema
from pipelines.contract.workspace import length_directory, shard_name
from pipelines.jobs.arrow_files import write_table
from training.data.arrow_examples import ArrowExamples
from training.data.dynamic_masking import DynamicMasking
from training.data.ordering import GlobalOrder
from training.data.row_checks import RowRules, row_fault
from training.data.rows import Ragged, Rows
from training.data.step_reader import StepReader, heldout_batches

CLS, SEP, MASK = 2, 3, 4
VOCAB_SIZE, LENGTH = 50, 16
MASKING = DynamicMasking(0.15, 5, CLS, SEP, MASK, VOCAB_SIZE)
Row = dict[str, Any]
Change = Callable[[Row], Any]


def sound_row(number: int, masking: str = "static", has_pairs: bool = True) -> Row:
    length = 6 + number % (LENGTH - 5)
    ids = [CLS, *(5 + (number + place) % 45 for place in range(length - 2)), SEP]
    if has_pairs:
        ids[2] = SEP
    positions = [] if masking == "dynamic" else [1, 3][: 1 + number % 2]
    labels = [ids[place] for place in positions]
    for place in positions:
        ids[place] = MASK
    return {
        "input_ids": ids,
        "segment_b_start": 3 if has_pairs else length,
        "masked_lm_positions": positions,
        "masked_lm_ids": labels,
        "next_sentence_label": number % 2 if has_pairs else 0,
    }


def write(directory: str, rows: list[Row], split: Any = "train", **metadata: str) -> Manifest:
    """Two files, of which the second has batches of three rows."""
    stated = {"masking": "static", "next_sentence": "true", "vocabulary_size": str(VOCAB_SIZE)} | metadata
    schema = examples_schema(VOCAB_SIZE, stated)
    files = []
    for index, (part, per_batch) in enumerate(((rows[:10], 100), (rows[10:], 3))):
        name = f"{length_directory(LENGTH)}/{shard_name(split, index, 2)}"
        write_table(os.path.join(directory, name), pa.Table.from_pylist(part, schema=schema), per_batch)
        files.append(record_of(directory, name, len(part)))
    return StageKey("examples", 1, {}, {}).manifest(files, {}, "test")


def setter(column: str, place: int | None, value: int) -> Change:
    def change(row: Row) -> None:
        if place is None:
            row[column] = value
        else:
            row[column][place] = value

    return change


def swap_positions(row: Row) -> None:
    row.update(masked_lm_positions=[3, 1], masked_lm_ids=[5, 6])


STATIC = {
    "id": (setter("input_ids", 1, VOCAB_SIZE), "input_ids has the id 50, but the vocabulary ends at 49"),
    "label-id": (setter("masked_lm_ids", 0, 60_000), "masked_lm_ids has the id 60000"),
    "on-cls": (setter("masked_lm_positions", 0, 0), "a masked position is outside the row's text"),
    "behind": (setter("masked_lm_positions", -1, 15), "a masked position is outside the row's text"),
    "far-behind": (setter("masked_lm_positions", -1, 65_535), "a masked position is outside the row's text"),
    "descending": (swap_positions, "not above the one before it"),
    "twice": (lambda row: row.update(masked_lm_positions=[1, 1], masked_lm_ids=[5, 6]), "not above the one before it"),
    "long": (lambda row: row["input_ids"].extend([9] * 30), "its length is not in 5 to max_seq_length = 16"),
    "short": (
        lambda row: row.update(input_ids=[CLS, SEP], masked_lm_positions=[], masked_lm_ids=[]),
        "its length is not in 5",
    ),
    "empty": (lambda row: row.update(input_ids=[]), "its length is not in 5"),
    "segment-far": (setter("segment_b_start", None, 60_000), "segment_b_start is not in the row"),
    "segment-cls": (setter("segment_b_start", None, 0), "segment_b_start is not in the row"),
    "segment-end": (lambda row: row.update(segment_b_start=len(row["input_ids"]) - 1), "segment_b_start is not in"),
    "unmasked": (lambda row: row.update(masked_lm_positions=[], masked_lm_ids=[]), "no token is masked"),
    "label": (setter("next_sentence_label", None, 2), "next_sentence_label is above 1"),
    "more-ids": (lambda row: row["masked_lm_ids"].append(7), "not have one masked_lm_id per masked position"),
    "more-places": (lambda row: row["masked_lm_positions"].append(4), "not have one masked_lm_id per masked position"),
}


@pytest.mark.parametrize("number", [0, 9, 10, 24])
@pytest.mark.parametrize("kind", sorted(STATIC))
def test_a_wrong_row_is_refused_with_its_file_and_row(tmp_path: Path, kind: str, number: int) -> None:
    change, message = STATIC[kind]
    rows = [sound_row(row + 1) for row in range(25)]
    change(rows[number])
    directory = str(tmp_path)
    examples = ArrowExamples(directory, write(directory, rows), "train", LENGTH)
    reader = StepReader(examples, GlobalOrder(25, 1, block_rows=4), 5)
    name, row = (f"train-0000{number // 10 if number < 10 else 1}", number if number < 10 else number - 10)
    with pytest.raises(InputError, match=rf"{name}-of-00002\.arrow, row {row}: .*{message}") as caught:
        for _ in reader.steps(0, 5):
            pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setter("next_sentence_label", None, 1), "next_sentence_label is above 0"),
        (setter("segment_b_start", None, 60_000), "segment_b_start is not in the row"),
    ],
)
def test_rows_of_full_sentences_have_their_own_rules(tmp_path: Path, change: Change, message: str) -> None:
    rows = [sound_row(row, has_pairs=False) for row in range(25)]
    examples = ArrowExamples(str(tmp_path), write(str(tmp_path), rows, next_sentence="false"), "train", LENGTH)
    assert len(examples.read(((0, 25),)).segment_b_start) == 25
    change(rows[12])
    examples = ArrowExamples(str(tmp_path), write(str(tmp_path), rows, next_sentence="false"), "train", LENGTH)
    with pytest.raises(InputError, match=rf"train-00001-of-00002\.arrow, row 2: {message}"):
        examples.read(((0, 25),))


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("kind", ["id", "long", "segment-far", "label", "far-behind", "only-special"])
def test_dynamic_masking_is_refused_likewise(tmp_path: Path, kind: str, split: Any) -> None:
    rows = [sound_row(row, masking="dynamic") for row in range(25)]
    if kind == "only-special":
        change: Change = lambda row: row.update(input_ids=[CLS, SEP, SEP, CLS, SEP, SEP])  # noqa: E731
        message = "no token that can be masked"
    elif kind == "far-behind":
        change = lambda row: row.update(masked_lm_positions=[900], masked_lm_ids=[7])  # noqa: E731
        message = "a masked position is outside the row's text"
    else:
        change, message = STATIC[kind]
    change(rows[17])
    manifest = write(str(tmp_path), rows, split, masking="dynamic")
    examples = ArrowExamples(str(tmp_path), manifest, split, LENGTH)
    if split == "train":
        batches: Any = StepReader(examples, GlobalOrder(25, 1), 5, targets=MASKING).steps(0, 5)
    else:
        batches = heldout_batches(examples, 25, 5, targets=MASKING)
    with pytest.raises(InputError, match=rf"{split}-00001-of-00002\.arrow, row 7: .*{message}"):
        for _ in batches:
            pass


def test_files_of_two_stages_are_refused(tmp_path: Path) -> None:
    directory, rows = str(tmp_path), [sound_row(row) for row in range(25)]
    manifest = write(directory, rows)
    first = tmp_path / manifest.files[0].name
    table = pa.ipc.open_file(first).read_all()
    write_table(str(first), table.replace_schema_metadata({**table.schema.metadata, b"clozeworks.seed": b"9"}), 100)
    restated = [record_of(directory, file.name, file.rows) for file in manifest.files]
    manifest = manifest.model_copy(update={"files": tuple(restated)})
    with pytest.raises(InputError, match=r"train-00001\S+: clozeworks\.seed is None, in \S+train-00000\S+ it is '9'"):
        ArrowExamples(directory, manifest, "train", LENGTH)


def test_lists_that_reach_beyond_their_column_are_refused(tmp_path: Path) -> None:
    examples = ArrowExamples(
        str(tmp_path), write(str(tmp_path), [sound_row(row) for row in range(25)]), "train", LENGTH
    )
    chunk = examples._shards[0].chunks[0]
    examples._shards[0].chunks[0] = Rows(
        Ragged(chunk.input_ids.values[:-3], chunk.input_ids.offsets),
        chunk.segment_b_start,
        chunk.masked_lm_positions,
        chunk.masked_lm_ids,
        chunk.next_sentence_label,
    )
    with pytest.raises(InputError, match=r"row 0: the lists of input_ids extend beyond the column's values"):
        examples.read(((0, 25),))


def is_sound(row: Row, rules: RowRules) -> bool:
    """The rules one at a time, in plain Python."""
    ids, positions, labels = row["input_ids"], row["masked_lm_positions"], row["masked_lm_ids"]
    length, start = len(ids), row["segment_b_start"]
    return (
        (5 if rules.has_pairs else 3) <= length <= rules.max_seq_length
        and all(token < rules.vocab_size for token in [*ids, *labels])
        and len(positions) == len(labels) >= (1 if rules.is_masked else 0)
        and all(1 <= place < length - 1 for place in positions)
        and all(one < other for one, other in pairwise(positions))
        and (3 <= start <= length - 2 if rules.has_pairs else start <= length)
        and row["next_sentence_label"] <= (1 if rules.has_pairs else 0)
    )


@st.composite
def perhaps_wrong(draw: st.DrawFn) -> list[Row]:
    rows = [sound_row(number) for number in draw(st.lists(st.integers(0, 40), min_size=1, max_size=12))]
    for _ in range(draw(st.integers(0, 2))):
        row = rows[draw(st.integers(0, len(rows) - 1))]
        column = draw(st.sampled_from(sorted(row)))
        value = draw(st.integers(0, 70))
        if not isinstance(row[column], list):
            row[column] = value
        elif not row[column] or draw(st.booleans()):
            row[column].insert(draw(st.integers(0, len(row[column]))), value)
        elif draw(st.booleans()):
            row[column][draw(st.integers(0, len(row[column]) - 1))] = value
        else:
            del row[column][draw(st.integers(0, len(row[column]) - 1)) :]
    return rows


@pytest.mark.slow
@settings(max_examples=1_500, deadline=None, derandomize=True)
@given(rows=perhaps_wrong(), has_pairs=st.booleans(), is_masked=st.booleans())
def test_rules_equal_the_slow_ones(rows: list[Row], has_pairs: bool, is_masked: bool) -> None:
    rules = RowRules(VOCAB_SIZE, LENGTH, has_pairs, is_masked)
    columns = copy.deepcopy(rows)
    batch = pa.Table.from_pylist(columns, schema=examples_schema(VOCAB_SIZE, {})).to_batches()[0]
    wrong = [number for number, row in enumerate(rows) if not is_sound(row, rules)]
    fault = row_fault(Rows.of(batch).slice(0, len(rows)), rules)
    assert (fault is None) == (not wrong)
    assert fault is None or fault[0] in wrong


def test_rows_are_looked_at_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def counting(rows: Rows, rules: RowRules) -> None:
        looked.append(len(rows.segment_b_start))
        assert row_fault(rows, rules) is None

    monkeypatch.setattr("training.data.arrow_examples.row_fault", counting)
    with tempfile.TemporaryDirectory() as directory:
        examples = ArrowExamples(directory, write(directory, [sound_row(row) for row in range(25)]), "train", LENGTH)
        reader = StepReader(examples, GlobalOrder(25, 1, block_rows=4, window_blocks=2), 5)
        for _ in reader.steps(0, 5):
            pass
        first_epoch = sum(looked)
        for _ in reader.steps(25, 50):
            pass
    assert first_epoch >= 25
    assert np.unique(looked).max() <= 8
    assert sum(looked) < 3 * 25
