"""The global order and the batches made from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from training.data.arrow_examples import ArrowExamples
from training.data.ordering import GlobalOrder, keyed_permutation, share_of


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    num_rows=st.integers(1, 300),
    block_rows=st.integers(1, 40),
    window_blocks=st.integers(1, 6),
    seed=st.integers(0, 2**62),
    cut=st.integers(0, 700),
)
def test_every_row_once_an_epoch_and_any_position_gives_the_rest(
    num_rows: int, block_rows: int, window_blocks: int, seed: int, cut: int
) -> None:
    order = GlobalOrder(num_rows, seed, "s", block_rows, window_blocks)
    rows = order.rows(0, 3 * num_rows)
    for epoch in range(3):
        assert sorted(rows[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
    cut = min(cut, 3 * num_rows)
    assert order.rows(cut, 3 * num_rows - cut).tolist() == rows[cut:].tolist()


def test_order_depends_on_seed_stream_and_epoch_and_mixes_widely() -> None:
    order = GlobalOrder(50_000, 7, "a")
    first = order.rows(0, 50_000)
    assert first.tolist() != order.rows(50_000, 50_000).tolist()
    assert first.tolist() != GlobalOrder(50_000, 8, "a").rows(0, 50_000).tolist()
    assert first.tolist() != GlobalOrder(50_000, 7, "b").rows(0, 50_000).tolist()
    # Rows change places between epochs also where one block holds them all.
    single = GlobalOrder(1_000, 7, "a")
    assert single.rows(0, 1_000).tolist() != single.rows(1_000, 1_000).tolist()
    # A batch draws from all over its window, not from one run of neighbours.
    assert np.ptp(first[:256]) > 20_000


def test_permutation_is_pinned() -> None:
    # A change here changes the order of every run that is under way: raise PRETRAINING_VERSION with it.
    assert keyed_permutation(8, 1, "rows", 0).tolist() == [1, 2, 4, 3, 5, 6, 7, 0]


@given(total=st.integers(0, 1000), parts=st.integers(1, 20))
def test_shares_differ_by_at_most_one(total: int, parts: int) -> None:
    edges = [share_of(total, part, parts) for part in range(parts)]
    assert edges[0][0] == 0
    assert edges[-1][1] == total
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    assert max(b - a for a, b in edges) - min(b - a for a, b in edges) <= 1


def test_damaged_shards_are_named(make_workspace: Callable[[str], Any]) -> None:
    workspace = make_workspace("damaged")
    directory = os.path.join(workspace.path, "examples")
    manifest = read_manifest(directory)
    assert manifest is not None
    with pytest.raises(InputError, match="no train examples of max_seq_length = 16"):
        ArrowExamples(directory, manifest, "train", 16)
    name = manifest.files_of("train", "length32")[0].name
    path = os.path.join(directory, name)
    with open(path, "r+b") as stream:
        stream.seek(-6, os.SEEK_END)
        stream.write(b"broken")
    with pytest.raises(InputError, match=rf"{name}: not a readable Arrow file"):
        ArrowExamples(directory, manifest, "train", 32)
    os.truncate(path, 100)
    with pytest.raises(InputError, match=rf"{name}: has 100 bytes"):
        ArrowExamples(directory, manifest, "train", 32)
