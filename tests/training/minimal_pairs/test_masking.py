"""Masked copies against a reference that follows the papers' words."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.minimal_pairs.masking import METHODS, masked_copies, next_tokens
from training.settings.pretraining import PairsMethod

MASK = 99
WORD_LENGTHS = st.lists(st.integers(1, 4), min_size=1, max_size=5)


def reference(ids: list[int], words: list[int], method: PairsMethod) -> list[tuple[list[int], int]]:
    """One copy per token between the first and the last."""
    found = []
    for target in range(1, len(ids) - 1):
        copy = list(ids)
        copy[target] = MASK
        if method == "word-l2r":
            for later in range(target + 1, len(ids)):
                if words[later] == words[target]:
                    copy[later] = MASK
        found.append((copy, target))
    return found


@given(WORD_LENGTHS, WORD_LENGTHS, st.sampled_from(METHODS))
def test_copies_equal_the_reference(first: list[int], second: list[int], method: PairsMethod) -> None:
    length = min(sum(first), sum(second))
    ids, words = [], []
    for row, lengths in enumerate((first, second)):
        pieces = [word for word, count in enumerate(lengths) for _ in range(count)][:length]
        words.append([-1, *pieces, -2])
        ids.append([1, *range(10 * (row + 1), 10 * (row + 1) + length), 2])
    copies = masked_copies(np.array(ids), np.array(words), MASK, method)
    expected = [(row, copy) for row in range(2) for copy in reference(ids[row], words[row], method)]
    assert copies.rows.tolist() == [row for row, _ in expected]
    assert copies.input_ids.tolist() == [copy for _, (copy, _) in expected]
    width = length + 2
    assert copies.targets.tolist() == [place * width + target for place, (_, (_, target)) in enumerate(expected)]
    assert copies.target_ids.tolist() == [ids[row][target] for row, (_, target) in expected]


def test_left_to_right_each_token_but_the_special_ones_is_predicted_at_the_one_before() -> None:
    found = next_tokens(np.array([[1, 10, 11, 2], [1, 20, 21, 2]]))
    assert found.input_ids.tolist() == [[1, 10, 11, 2], [1, 20, 21, 2]]
    assert found.targets.tolist() == [0, 1, 4, 5]
    assert found.target_ids.tolist() == [10, 11, 20, 21]
    assert found.rows.tolist() == [0, 0, 1, 1]
