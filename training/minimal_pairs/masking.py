"""The masked copies of a sentence whose predictions make up its pseudo-log-likelihood."""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from training.settings.pretraining import PairsMethod

Method = PairsMethod
"""Which tokens a copy masks next to the one it predicts.

`word-l2r`: the later pieces of the same word, too, since they give it away (Kauf & Ivanova, 2023, section 3).
`original`: none (Salazar et al., 2020, equation 2).
"""
METHODS: tuple[Method, ...] = get_args(Method)

IntArray = npt.NDArray[np.int64]


class MaskedCopies(NamedTuple):
    """One copy per token of some sentences. input_ids: [copies, S] int64; target_positions, target_ids, rows:
    [copies] int64, where the copy predicts, what, and for which sentence.
    """

    input_ids: IntArray
    target_positions: IntArray
    target_ids: IntArray
    rows: IntArray


def masked_copies(input_ids: IntArray, word_numbers: IntArray, mask_id: int, method: Method) -> MaskedCopies:
    """The copies of sentences of one length, sentence after sentence.

    Args:
        input_ids: [sentences, S], from [CLS] to [SEP], which are not predicted.
        word_numbers: [sentences, S], equal for the pieces of one word.
        mask_id: the id of [MASK].
        method: see `Method`.
    """
    count, length = input_ids.shape
    positions = np.arange(length)
    targets = positions[1:-1]
    is_masked = positions == targets[:, None]
    copies_masked = np.broadcast_to(is_masked, (count, *is_masked.shape))
    if method == "word-l2r":
        same_word = word_numbers[:, None, :] == word_numbers[:, 1:-1, None]
        copies_masked = same_word & (positions >= targets[:, None])
    copies = np.where(copies_masked, mask_id, input_ids[:, None, :])
    return MaskedCopies(
        copies.reshape(-1, length),
        np.tile(targets, count),
        input_ids[:, 1:-1].reshape(-1),
        np.repeat(np.arange(count), length - 2),
    )
