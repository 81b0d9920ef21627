"""Next tokens against a loop over rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.data.next_tokens import NextTokens

ROWS = st.lists(st.lists(st.integers(0, 99), min_size=2, max_size=7), min_size=1, max_size=6)


@given(ROWS)
def test_each_token_but_the_last_of_a_row_predicts_the_next(rows: list[list[int]]) -> None:
    input_ids, lengths = np.concatenate(rows), np.array([len(row) for row in rows])
    offsets, keys = np.concatenate([[0], np.cumsum(lengths)]), np.zeros(len(rows), dtype=np.uint64)
    before = input_ids.copy()
    counts = NextTokens().num_predictions(input_ids, offsets, keys)
    positions, ids = NextTokens().apply(input_ids, lengths, keys, counts)
    expected = [
        (start + place, row[place + 1])
        for start, row in zip(offsets[:-1].tolist(), rows, strict=True)
        for place in range(len(row) - 1)
    ]
    assert list(zip(positions.tolist(), ids.tolist(), strict=True)) == expected
    assert counts.tolist() == [len(row) - 1 for row in rows]
    assert (input_ids == before).all()
