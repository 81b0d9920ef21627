"""Shards that are opened when their rows are needed, from local copies of a remote directory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, record_of
from pipelines.contract.schemas import examples_schema
from pipelines.contract.workspace import length_directory, shard_name
from pipelines.jobs.arrow_files import write_table
from training.data.arrow_examples import ArrowExamples
from training.data.ordering import GlobalOrder
from training.data.step_reader import StepReader

LENGTH, ROWS, SHARDS = 16, (7, 0, 11, 3, 9), 5
REMOTE = "s3://bucket/run/examples"


class Copies:
    """Stands for a staged directory: the shards of `directory`, recorded in the order in which they were needed."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.opened: list[str] = []
        self.prefetched: list[str] = []

    def path(self, name: str) -> str:
        self.opened.append(name)
        return os.path.join(self.directory, name)

    def prefetch(self, names: Iterable[str]) -> None:
        self.prefetched += names


def write(directory: str) -> Manifest:
    schema = examples_schema(50, {"masking": "static", "next_sentence": "true", "vocabulary_size": "50"})
    files, first = [], 0
    for index, count in enumerate(ROWS):
        rows = [
            {
                "input_ids": [2, 5 + row, 6, 3, 7, 8, 3],
                "segment_b_start": 4,
                "masked_lm_positions": [1],
                "masked_lm_ids": [5 + row],
                "next_sentence_label": 0,
            }
            for row in range(first, first + count)
        ]
        name = f"{length_directory(LENGTH)}/{shard_name('train', index, SHARDS)}"
        write_table(os.path.join(directory, name), pa.Table.from_pylist(rows, schema=schema), 4)
        files.append(record_of(directory, name, count))
        first += count
    return StageKey("examples", 1, {}, {}).manifest(files, {}, "test")


def test_rows_are_those_of_the_local_directory_and_shards_are_opened_when_read(tmp_path: Path) -> None:
    directory = str(tmp_path)
    manifest = write(directory)
    names = [file.name for file in manifest.files]
    local = ArrowExamples(directory, manifest, "train", LENGTH)
    copies = Copies(directory)
    remote = ArrowExamples(REMOTE, manifest, "train", LENGTH, copies=copies)
    assert remote.num_rows == local.num_rows == sum(ROWS)
    # The first shard has the metadata, and one without rows is never needed.
    assert copies.opened == names[:1]
    assert remote.metadata == local.metadata
    assert remote.read(((19, 20),)).input_ids.values.tolist() == [2, 24, 6, 3, 7, 8, 3]
    assert copies.opened == [names[0], names[3]]
    generator = np.random.default_rng(1)
    for _ in range(50):
        edges = np.sort(generator.choice(sum(ROWS) + 1, size=(3, 2)), axis=1)
        blocks = tuple((int(first), int(last)) for first, last in edges if first < last) or ((0, sum(ROWS)),)
        ours, theirs = remote.read(blocks), local.read(blocks)
        expected = [5 + row for first, last in blocks for row in range(first, last)]
        assert ours.masked_lm_ids.values.tolist() == theirs.masked_lm_ids.values.tolist() == expected
        assert ours.input_ids.values.tolist() == theirs.input_ids.values.tolist()
    assert sorted(copies.opened) == sorted({*names} - {names[1]})


def test_the_shards_of_the_next_windows_are_prefetched_in_reading_order(tmp_path: Path) -> None:
    directory = str(tmp_path)
    manifest = write(directory)
    copies = Copies(directory)
    remote = ArrowExamples(REMOTE, manifest, "train", LENGTH, copies=copies)
    local = ArrowExamples(directory, manifest, "train", LENGTH)
    order = GlobalOrder(sum(ROWS), 3, block_rows=3, window_blocks=2)

    reader = StepReader(remote, order, 4)
    reader.prefetch(0)
    ordered, copies.prefetched = copies.prefetched, []
    assert copies.opened == [manifest.files[0].name], "ordered without waiting for a shard"
    reader.step_at(0)
    assert copies.prefetched == ordered
    ends = np.cumsum(ROWS)
    first_windows = {manifest.files[int(np.searchsorted(ends, row, side="right"))].name for row in order.rows(0, 18)}
    assert {*copies.prefetched, manifest.files[0].name} == first_windows | {manifest.files[0].name}
    assert len(copies.prefetched) > len(copies.opened[1:])

    def ids(examples: ArrowExamples) -> list[Any]:
        reader = StepReader(examples, order, 4)
        return [reader.step_at(position).micro_batches[0].masked_lm_ids_M.tolist() for position in range(0, 60, 4)]

    assert ids(remote) == ids(local)
    needed = dict.fromkeys(copies.opened[1:])
    assert list(dict.fromkeys(copies.prefetched)) == list(needed)


def test_a_shard_that_differs_from_its_record_is_refused_when_it_is_reached(tmp_path: Path) -> None:
    directory = str(tmp_path)
    manifest = write(directory)
    files = [
        file if index != 2 else file.model_copy(update={"rows": file.rows - 1})
        for index, file in enumerate(manifest.files)
    ]
    restated = manifest.model_copy(update={"files": tuple(files)})
    message = "train-00002-of-00005.arrow: has 11 rows, but the manifest states 10; rebuild the examples stage"
    with pytest.raises(InputError, match=message):
        ArrowExamples(directory, restated, "train", LENGTH)
    remote = ArrowExamples(REMOTE, restated, "train", LENGTH, copies=Copies(directory))
    remote.read(((0, 7),))
    with pytest.raises(InputError, match=f"{REMOTE}/length16/{message}"):
        remote.read(((0, 8),))
    os.truncate(tmp_path / manifest.files[4].name, 100)
    with pytest.raises(InputError, match=rf"{REMOTE}/\S+train-00004\S+: has 100 bytes, but the manifest states"):
        remote.read(((22, 25),))
