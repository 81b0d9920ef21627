"""Distribute the rows of all documents shards over the output files, so that every file gets rows of every shard.

The rows of one shard are sorted by length and dealt like cards: in each round every file gets one row, forwards in one
round and backwards in the next, and each shard begins at another file. So the files agree in rows, in tokens and in the
mix of lengths, and each holds rows of every shard. Rows that do not fill a last round (the longest of a bin, nearly
equal in length) are left over; the left-over rows of all shards, concatenated, are dealt once all counts are known. In
the end the files of a group and bin differ by at most one row.

Up to `MOST_FILES_PER_GROUP` shards exchange rows with each other; more are divided into groups, because portions for
each pair of shard and file would be too small to read. Shards are random samples of the corpus, so groups are alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_FILES_PER_GROUP = 256

IntArray = NDArray[np.int64]


def group_of(index: int, count: int) -> range:
    """The shards that shard `index` of `count` exchanges rows with, itself among them; groups differ by one at most."""
    groups = -(-count // MOST_FILES_PER_GROUP)
    group = index * groups // count
    return range(-(-group * count // groups), -(-(group + 1) * count // groups))


def deal_rows(
    lengths: IntArray, ties: NDArray[np.uint64], bin_ends: Sequence[int], member: int, num_files: int
) -> list[list[IntArray]]:
    """Deal the rows of one shard.

    Args:
        lengths: [rows], tokens of each row, below 65,536.
        ties: [rows], random words that order rows of one length.
        bin_ends: the greatest length of each bin, ascending; the last is at least the longest row.
        member: the shard's number in its group.
        num_files: how many files the group has.

    Returns:
        For each bin `num_files` arrays of row numbers, and one more with the rows left over, fewer than `num_files`.
    """
    # A length takes 16 bits, so one sort does for both.
    order = np.argsort(lengths.astype(np.uint64) << np.uint64(48) | ties >> np.uint64(16), kind="stable")
    ends = np.searchsorted(lengths[order], bin_ends, side="right")
    dealt = []
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        rounds = (end - first) // num_files
        full = order[first : first + rounds * num_files].reshape(rounds, num_files)
        # Every second round is reversed, because the first row of a round is its shortest.
        full[1::2] = full[1::2, ::-1]
        portions = [full[:, (file - member) % num_files] for file in range(num_files)]
        dealt.append([*portions, order[first + rounds * num_files : end]])
    return dealt


def left_over_rows(counts: Sequence[int], file: int, num_files: int) -> list[IntArray]:
    """Each shard's left-over rows for one file: every `num_files`-th of all left-over rows, concatenated."""
    shares, before = [], 0
    for count in counts:
        shares.append(np.arange((file - before) % num_files, count, num_files))
        before += count
    return shares
