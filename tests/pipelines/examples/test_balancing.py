"""Distributing rows: every row once, files within one row of each other, tokens well within one per cent."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.examples.balancing import MOST_FILES_PER_GROUP, deal_rows, group_of, left_over_rows


@given(count=st.integers(1, 3_000))
def test_groups_cover_all_shards_and_are_alike(count: int) -> None:
    groups = {group_of(index, count) for index in range(count)}
    assert sorted(index for group in groups for index in group) == list(range(count))
    assert all(index in group_of(index, count) for index in range(count))
    sizes = {len(group) for group in groups}
    assert max(sizes) <= MOST_FILES_PER_GROUP
    assert max(sizes) - min(sizes) <= 1


def share_out(
    lengths_of_shards: list[NDArray[np.int64]], bin_ends: list[int], seed: int = 0
) -> list[list[list[tuple[int, int]]]]:
    """For each bin and file its rows as (shard, row), like the job."""
    num_files = len(lengths_of_shards)
    generator = np.random.Generator(np.random.Philox(key=seed))
    dealt = [
        deal_rows(lengths, generator.integers(0, 2**63, len(lengths)).astype(np.uint64), bin_ends, member, num_files)
        for member, lengths in enumerate(lengths_of_shards)
    ]
    result = []
    for bin_number in range(len(bin_ends)):
        left_over = [shard[bin_number][num_files] for shard in dealt]
        assert all(len(rows) < num_files for rows in left_over)
        files = []
        for file in range(num_files):
            rows = [(shard, int(row)) for shard in range(num_files) for row in dealt[shard][bin_number][file]]
            shares = left_over_rows([len(one) for one in left_over], file, num_files)
            rows += [(shard, int(left_over[shard][place])) for shard, share in enumerate(shares) for place in share]
            files.append(rows)
        result.append(files)
    return result


@settings(max_examples=300, deadline=None)
@given(
    shards=st.lists(st.lists(st.integers(5, 64), max_size=60), min_size=1, max_size=9),
    bins=st.integers(1, 8),
    seed=st.integers(0, 2**32),
)
def test_every_row_goes_into_one_file_of_its_bin(shards: list[list[int]], bins: int, seed: int) -> None:
    ends = [64 * number // bins for number in range(1, bins + 1)]
    lengths = [np.array(shard, np.int64) for shard in shards]
    files_of_bins = share_out(lengths, ends, seed)
    everything = [row for files in files_of_bins for file in files for row in file]
    assert sorted(everything) == [(shard, row) for shard, each in enumerate(shards) for row in range(len(each))]
    for above, up_to, files in zip([0, *ends], ends, files_of_bins, strict=False):
        assert all(above < shards[shard][row] <= up_to for file in files for shard, row in file)
        sizes = [len(file) for file in files]
        assert max(sizes) - min(sizes) <= 1


def test_tokens_are_balanced_where_shards_differ_in_size_and_in_text() -> None:
    generator = np.random.Generator(np.random.Philox(key=9))
    for num_shards, rows in ((16, 3_000), (64, 500), (256, 1_500)):
        # Some shards are twice as large as others, and have much shorter rows.
        lengths = [
            np.minimum(128, generator.integers(5, 100 + shard % 60, size=rows * (1 + shard % 2)))
            for shard in range(num_shards)
        ]
        (files,) = share_out(lengths, [128])
        tokens = np.array([sum(int(lengths[shard][row]) for shard, row in file) for file in files])
        assert np.abs(tokens / tokens.mean() - 1).max() < 0.002
        # And each file has its part of every shard.
        assert {shard for shard, _ in files[0]} == set(range(num_shards))
