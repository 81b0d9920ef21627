"""Which words of each row are masked if all pieces of a word are masked together (--do_whole_word_mask).

The rule is that of `create_masked_lm_predictions` in the released code and of `pipelines.examples.masking`: words in
random order, and a word that would exceed the row's number of predictions is skipped. Vectorized over rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from training.data.ordering import IntArray

BoolArray = npt.NDArray[np.bool_]


class Words(NamedTuple):
    """Words of concatenated rows: int64 [words] flat `starts` in ascending order, `sizes` in tokens, and `rows`."""

    starts: IntArray
    sizes: IntArray
    rows: IntArray


def find_words(input_ids: npt.NDArray[Any], offsets: IntArray, is_special: BoolArray, continues: BoolArray) -> Words:
    """The maskable words of concatenated rows.

    Args:
        input_ids: [T], unmasked.
        offsets: [rows + 1], delimiting the rows.
        is_special: [T], true for [CLS] and [SEP], which no word contains.
        continues: [vocabulary], true for tokens that continue a word, which start with `##`.
    """
    begins = ~continues[input_ids]
    # What continues nothing is a word of its own.
    begins[1:] |= is_special[:-1]
    begins[:1] = True
    begins |= is_special
    edges = np.flatnonzero(begins)
    sizes = np.diff(edges, append=len(input_ids))
    is_word = ~is_special[edges]
    starts = edges[is_word]
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[starts]
    return Words(starts, sizes[is_word], rows)


def choose_words(sizes: IntArray, rows: IntArray, wanted: IntArray) -> BoolArray:
    """Take each row's words in the order given, and skip those that would exceed `wanted` tokens of the row.

    Args:
        sizes, rows: [words], grouped by row, in the order in which the words are considered.
        wanted: [rows], most tokens to take.
    """
    taken = np.zeros(len(sizes), dtype=np.bool_)
    left = wanted.copy()
    remaining = np.arange(len(sizes))
    while True:
        # A word that no longer fits never will, since what is left only decreases.
        remaining = remaining[sizes[remaining] <= left[rows[remaining]]]
        if not len(remaining):
            return taken
        # Take all words up to the first that exceeds what is left; at least one of each row.
        own_sizes, own_rows = sizes[remaining], rows[remaining]
        sums = np.cumsum(own_sizes)
        firsts = np.flatnonzero(np.diff(own_rows, prepend=-1))
        before = np.repeat(sums[firsts] - own_sizes[firsts], np.diff(firsts, append=len(remaining)))
        fits = sums - before <= left[own_rows]
        taken[remaining[fits]] = True
        left -= np.bincount(own_rows[fits], weights=own_sizes[fits], minlength=len(left)).astype(np.int64)
        remaining = remaining[~fits]
