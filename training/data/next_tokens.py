"""What a left-to-right model predicts at each token: the next one of its row (paper, section 5.1, "LTR & No NSP")."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from training.data.ordering import IntArray

Ids = npt.NDArray[Any]


class Targets(Protocol):
    """Chooses what the rows of a batch predict, while they are read: masked tokens, or next ones."""

    @property
    def predicts_in_every_row(self) -> bool:
        """Whether a row without anything to predict is a fault."""
        ...

    def num_predictions(self, input_ids: Ids, offsets: IntArray, keys: npt.NDArray[np.uint64], /) -> IntArray:
        """Number of predicted tokens of each row: [rows], of rows concatenated in input_ids [T], offsets [rows + 1]."""
        ...

    def apply(
        self, input_ids: Ids, lengths: IntArray, keys: npt.NDArray[np.uint64], num_predictions: IntArray, /
    ) -> tuple[IntArray, Ids]:
        """Flat positions among the T tokens, ascending, and the tokens to predict there; may change input_ids."""
        ...


class NextTokens:
    """Every token but a row's last predicts the one that follows it, [SEP] included; nothing is masked."""

    predicts_in_every_row = True

    def num_predictions(self, _input_ids: Ids, offsets: IntArray, _keys: npt.NDArray[np.uint64]) -> IntArray:
        num_predictions: IntArray = np.diff(offsets).astype(np.int64) - 1
        return num_predictions

    def apply(
        self, input_ids: Ids, lengths: IntArray, _keys: npt.NDArray[np.uint64], _num_predictions: IntArray
    ) -> tuple[IntArray, Ids]:
        is_predicting = np.ones(len(input_ids), dtype=np.bool_)
        is_predicting[np.cumsum(lengths) - 1] = False
        positions: IntArray = np.flatnonzero(is_predicting)
        return positions, input_ids[positions + 1]
