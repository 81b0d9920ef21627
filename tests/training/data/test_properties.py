"""Steps read from real Arrow files: the same set for any number of ranks and workers, no row twice, exact resume."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract.manifest import Manifest, StageKey, record_of
from pipelines.contract.schemas import Split, examples_schema
from pipelines.contract.workspace import length_directory, shard_name
from pipelines.jobs.arrow_files import write_table
from training.data.arrow_examples import ArrowExamples
from training.data.batches import MicroBatch, StepBatch
from training.data.dynamic_masking import DynamicMasking
from training.data.ordering import GlobalOrder, dealt_rows
from training.data.step_reader import Deal, StepReader, heldout_batches

WORLD_SIZES = (1, 2, 3, 4, 8)
CLS_ID, SEP_ID, MASK_ID = 2, 3, 4
FIRST_WORD_ID = 5
VOCAB_SIZE = 30_000
MAX_SEQ_LENGTH = 32
MASKING = DynamicMasking(0.15, 5, CLS_ID, SEP_ID, MASK_ID, VOCAB_SIZE)
METADATA = {"masked_lm_prob": "0.15", "max_predictions_per_seq": "5", "next_sentence": "true"}

UnpackedRow = tuple[tuple[int, ...], int, tuple[int, ...], tuple[int, ...], int]
"""input_ids, segment_b_start, masked_lm_positions, masked_lm_ids, next_sentence_label"""


@dataclass(frozen=True)
class ExampleFiles:
    """Layout of rows on disk. Words of all rows differ, so any of its words identifies a row."""

    lengths: Sequence[int]
    first_rows: Sequence[int] = ()
    """Rows at which another file begins; two equal ones make an empty file."""
    rows_per_batch: int = 8
    masking: str = "static"
    full_sentences: bool = False
    names: Sequence[str] = ()

    def rows(self) -> list[dict[str, Any]]:
        words = iter(range(FIRST_WORD_ID, VOCAB_SIZE))
        return [self._row(length, index, words) for index, length in enumerate(self.lengths)]

    def _row(self, length: int, index: int, words: Any) -> dict[str, Any]:
        generator = np.random.default_rng(index)
        middle_sep = length // 2
        ids = [next(words) for _ in range(length)]
        ids[0], ids[middle_sep], ids[-1] = CLS_ID, SEP_ID, SEP_ID
        positions: list[int] = []
        if self.masking != "dynamic":
            maskable = [place for place in range(1, length - 1) if place != middle_sep]
            wanted = min(len(maskable), 5, max(1, round(0.15 * length)))
            positions = sorted(int(place) for place in generator.choice(maskable, wanted, replace=False))
        masked_ids = [ids[place] for place in positions]
        for place in positions:
            # Also what must be put back before special tokens are looked for: a [SEP] that stands for a word.
            ids[place] = (MASK_ID, SEP_ID, ids[place])[int(generator.integers(3))]
        return {
            "input_ids": ids,
            "segment_b_start": length if self.full_sentences else middle_sep + 1,
            "masked_lm_positions": positions,
            "masked_lm_ids": masked_ids,
            "next_sentence_label": 0 if self.full_sentences else index % 2,
        }

    def write(self, directory: str, split: Split = "train") -> Manifest:
        metadata = {
            **METADATA,
            "masking": self.masking,
            "max_seq_length": str(MAX_SEQ_LENGTH),
            "next_sentence": str(not self.full_sentences).lower(),
        }
        schema = examples_schema(VOCAB_SIZE, metadata)
        rows = self.rows()
        edges = [0, *sorted(self.first_rows), len(rows)]
        files = []
        for index, (first, last) in enumerate(pairwise(edges)):
            name = self.names[index] if self.names else shard_name(split, index, len(edges) - 1)
            name = os.path.join(length_directory(MAX_SEQ_LENGTH), name)
            table = pa.Table.from_pylist(rows[first:last], schema=schema)
            write_table(os.path.join(directory, name), table, self.rows_per_batch)
            files.append(record_of(directory, name, last - first))
        return StageKey("examples", 1, {}, {}).manifest(files, {}, "test")


def unpacked(batch: MicroBatch) -> list[UnpackedRow]:
    """The rows of a packed batch as plain values, in its order."""
    sequences = batch.sequences
    edges = sequences.cu_seqlens.tolist()
    input_ids, token_types = sequences.input_ids_T.tolist(), sequences.token_type_ids_T.tolist()
    predictions = list(zip(batch.masked_lm_positions_M.tolist(), batch.masked_lm_ids_M.tolist(), strict=True))
    assert sequences.position_ids_T.tolist() == [place for a, b in pairwise(edges) for place in range(b - a)]
    assert sequences.first_tokens_B.tolist() == edges[:-1]
    return [
        (
            tuple(input_ids[first:last]),
            [*token_types[first:last], 1].index(1),
            tuple(position - first for position, _ in predictions if first <= position < last),
            tuple(masked_id for position, masked_id in predictions if first <= position < last),
            label,
        )
        for (first, last), label in zip(pairwise(edges), batch.next_sentence_label_B.tolist(), strict=True)
    ]


def plain(row: dict[str, Any]) -> UnpackedRow:
    """A row as it is written, in the form of `unpacked`."""
    return (
        tuple(row["input_ids"]),
        row["segment_b_start"],
        tuple(row["masked_lm_positions"]),
        tuple(row["masked_lm_ids"]),
        row["next_sentence_label"],
    )


def unmasked(row: UnpackedRow) -> tuple[int, ...]:
    """The ids of a row with its masked ones put back."""
    ids = list(row[0])
    for position, masked_id in zip(row[2], row[3], strict=True):
        ids[position] = masked_id
    return tuple(ids)


@dataclass(frozen=True)
class Reading:
    """How the files of one test are read."""

    block_rows: int
    window_blocks: int
    micro_batches: int
    by_tokens: bool
    more: int
    """Rows, or tokens, of a step beyond the fewest."""
    masking: DynamicMasking | None

    def reader(self, examples: ArrowExamples, rank: int, world_size: int) -> StepReader:
        order = self.order(examples)
        # The fewest that eight ranks can share, so that all numbers of ranks read the same steps.
        parts = max(WORLD_SIZES) * self.micro_batches
        size, tokens = (None, MAX_SEQ_LENGTH * parts + self.more) if self.by_tokens else (parts + self.more, None)
        return StepReader(
            examples,
            order,
            size,
            Deal(rank, world_size, with_plan=False, micro_batches=self.micro_batches),
            global_batch_tokens=tokens,
            targets=self.masking,
        )

    def order(self, examples: ArrowExamples) -> GlobalOrder:
        return GlobalOrder(examples.num_rows, 11, "t", self.block_rows, self.window_blocks)


@st.composite
def files_and_readings(draw: st.DrawFn) -> tuple[ExampleFiles, Reading]:
    lengths = draw(st.lists(st.integers(5, MAX_SEQ_LENGTH), min_size=1, max_size=120))
    masking = draw(st.sampled_from(["static", "dynamic"]))
    files = ExampleFiles(
        lengths,
        draw(st.lists(st.integers(0, len(lengths)), max_size=4)),
        draw(st.integers(1, 40)),
        masking,
        draw(st.booleans()),
    )
    reading = Reading(
        draw(st.integers(1, 30)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
        draw(st.booleans()),
        draw(st.integers(0, 30)),
        # Static masks may be used as written or drawn again.
        MASKING if masking == "dynamic" or draw(st.booleans()) else None,
    )
    return files, reading


@contextmanager
def opened(files: ExampleFiles) -> Iterator[ArrowExamples]:
    with tempfile.TemporaryDirectory() as directory:
        manifest = files.write(directory)
        yield ArrowExamples(directory, manifest, "train", MAX_SEQ_LENGTH)


def rows_of(parts: list[StepBatch]) -> list[UnpackedRow]:
    return [row for part in parts for batch in part.micro_batches for row in unpacked(batch)]


def exact(part: StepBatch) -> tuple[Any, ...]:
    """All of a step batch, in its order."""
    sizes = (part.global_sequences, part.global_tokens, part.global_masked_tokens, part.next_position)
    return ([unpacked(batch) for batch in part.micro_batches], sizes)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=files_and_readings(), steps=st.integers(1, 4), worker_count=st.integers(2, 4), cut=st.integers(0, 4))
def test_steps_are_a_function_of_the_position(
    case: tuple[ExampleFiles, Reading], steps: int, worker_count: int, cut: int
) -> None:
    files, reading = case
    with opened(files) as examples:
        written = [plain(row) for row in files.rows()]
        order = reading.order(examples)
        whole: list[list[UnpackedRow]] = []
        positions = [0]
        for step in reading.reader(examples, 0, 1).steps(0, steps):
            rows = rows_of([step])
            whole.append(sorted(rows))
            positions.append(step.next_position)
            wanted = order.rows(positions[-2], step.next_position - positions[-2])
            assert sorted(unmasked(row) for row in rows) == sorted(unmasked(written[index]) for index in wanted)
            assert step.global_sequences == len(rows)
            assert step.global_tokens == sum(len(row[0]) for row in rows)
            assert step.global_masked_tokens == sum(len(row[2]) for row in rows)
            if reading.masking is None:
                assert sorted(rows) == sorted(written[index] for index in wanted)
        for world_size in WORLD_SIZES[1:]:
            readers = [reading.reader(examples, rank, world_size) for rank in range(world_size)]
            for index, parts in enumerate(zip(*(reader.steps(0, steps) for reader in readers), strict=True)):
                assert sorted(rows_of(list(parts))) == whole[index]
                sizes = {exact(part)[1] for part in parts}
                assert len(sizes) == 1
                assert all(len(part.micro_batches) == reading.micro_batches for part in parts)
                assert all(batch.sequences.num_sequences for part in parts for batch in part.micro_batches)
        # Any worker may compute any step, and a run that stopped anywhere resumes with the rest.
        one_by_one = [exact(step) for step in reading.reader(examples, 1, 3).steps(0, steps)]
        workers = [reading.reader(examples, 1, 3) for _ in range(worker_count)]
        for index in reversed(range(steps)):
            assert exact(workers[index % worker_count].step_at(positions[index])) == one_by_one[index]
        cut = min(cut, steps)
        rest = reading.reader(examples, 1, 3).steps(positions[cut], steps - cut)
        assert [exact(step) for step in rest] == one_by_one[cut:]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=files_and_readings(), world_size=st.sampled_from(WORLD_SIZES))
def test_no_row_is_twice_or_missing_in_an_epoch(case: tuple[ExampleFiles, Reading], world_size: int) -> None:
    files, reading = case
    # Few parts, so that an epoch has several steps and its end falls inside one.
    reading = replace(reading, micro_batches=1)
    with opened(files) as examples:
        number_of = {unmasked(plain(row)): index for index, row in enumerate(files.rows())}
        readers = [reading.reader(examples, rank, world_size) for rank in range(world_size)]
        counts: list[np.ndarray] = [np.zeros(examples.num_rows, dtype=np.int64)]
        position, steps_left = 0, 40
        while position < 3 * examples.num_rows and steps_left:
            parts = [reader.step_at(position) for reader in readers]
            found = [number_of[unmasked(row)] for row in rows_of(parts)]
            counts.append(counts[-1] + np.bincount(found, minlength=examples.num_rows))
            position, steps_left = parts[0].next_position, steps_left - 1
            assert counts[-1].sum() == position
            # After n complete epochs and a part of the next, each row has occurred n or n + 1 times.
            epochs = position // examples.num_rows
            assert counts[-1].min() >= epochs
            assert counts[-1].max() <= epochs + (position % examples.num_rows > 0)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=files_and_readings())
def test_a_budget_of_tokens_is_filled_and_never_exceeded(case: tuple[ExampleFiles, Reading]) -> None:
    files, reading = case
    reading = replace(reading, by_tokens=True)
    budget = MAX_SEQ_LENGTH * max(WORLD_SIZES) * reading.micro_batches + reading.more
    with opened(files) as examples:
        order = reading.order(examples)
        for step in reading.reader(examples, 0, 1).steps(0, 5):
            following = files.lengths[int(order.rows(step.next_position, 1)[0])]
            assert step.global_tokens <= budget < step.global_tokens + following


@given(lengths=st.lists(st.integers(3, 512), min_size=1, max_size=200).map(np.array), parts=st.integers(1, 24))
def test_parts_are_dealt_equal_numbers_of_rows_and_tokens(lengths: np.ndarray, parts: int) -> None:
    dealt = [dealt_rows(lengths, part, parts) for part in range(parts)]
    assert sorted(np.concatenate(dealt)) == list(range(len(lengths)))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    tokens = [lengths[rows].sum() for rows in dealt]
    assert max(tokens) - min(tokens) <= lengths.max()
    assert all((np.diff(lengths[rows]) <= 0).all() for rows in dealt)


def test_a_batch_of_mixed_lengths_is_dealt_without_a_slow_rank() -> None:
    lengths = np.random.default_rng(1).integers(10, 129, 256)
    tokens = [int(lengths[dealt_rows(lengths, part, 8)].sum()) for part in range(8)]
    assert max(tokens) < 1.002 * sum(tokens) / 8


def test_files_of_length_bins_are_one_set_of_rows(tmp_path: Any) -> None:
    names = ("train-bin16-00000-of-00001.arrow", "train-bin32-00000-of-00001.arrow")
    files = ExampleFiles([8] * 20 + [30] * 20, first_rows=(20,), names=names)
    manifest = files.write(str(tmp_path))
    examples = ArrowExamples(str(tmp_path), manifest, "train", MAX_SEQ_LENGTH)
    reader = StepReader(examples, GlobalOrder(40, 1, "b", 4, 3), 20)
    found = rows_of(list(reader.steps(0, 2)))
    assert sorted(found) == sorted(plain(row) for row in files.rows())


def test_heldout_masks_are_the_same_in_every_evaluation(tmp_path: Any) -> None:
    files = ExampleFiles([20] * 30, masking="dynamic")
    manifest = files.write(str(tmp_path), "heldout")
    examples = ArrowExamples(str(tmp_path), manifest, "heldout", MAX_SEQ_LENGTH)

    def rows(batch_size: int, world_size: int) -> list[UnpackedRow]:
        return sorted(
            row
            for rank in range(world_size)
            for batch in heldout_batches(examples, 25, batch_size, Deal(rank, world_size), MASKING)
            for row in unpacked(batch)
        )

    assert rows(4, 1) == rows(7, 3) == rows(25, 1)
    assert [len(row[2]) for row in rows(4, 1)] == [3] * 25


def test_epochs_phases_and_seeds_differ_in_their_masks(tmp_path: Any) -> None:
    files = ExampleFiles([30] * 40, masking="dynamic")
    manifest = files.write(str(tmp_path))
    examples = ArrowExamples(str(tmp_path), manifest, "train", MAX_SEQ_LENGTH)

    def masks(order: GlobalOrder, position: int) -> dict[tuple[int, ...], tuple[int, ...]]:
        step = StepReader(examples, order, 40, targets=MASKING).step_at(position)
        return {unmasked(row): row[2] for row in rows_of([step])}

    first = masks(GlobalOrder(40, 1, "phase0"), 0)
    for other in (masks(GlobalOrder(40, 1, "phase0"), 40), masks(GlobalOrder(40, 1, "phase1"), 0)):
        assert first.keys() == other.keys()
        assert sum(first[row] == other[row] for row in first) <= 2
    assert first != masks(GlobalOrder(40, 2, "phase0"), 0)
    # Equal rows, unequal masks: a few of the 40 may meet by chance.
    assert len(set(first.values())) >= 36
    # A row's masks depend on nothing else: not on what is read together with it.
    assert first == masks(GlobalOrder(40, 1, "phase0", block_rows=3, window_blocks=2), 0)


def test_unmasked_files_are_not_trained_on_without_a_rule(tmp_path: Any) -> None:
    manifest = ExampleFiles([20] * 10, masking="dynamic").write(str(tmp_path))
    examples = ArrowExamples(str(tmp_path), manifest, "train", MAX_SEQ_LENGTH)
    with pytest.raises(AssertionError, match="nothing is masked"):
        StepReader(examples, GlobalOrder(10, 1), 4)
