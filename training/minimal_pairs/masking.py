"""The predictions whose log-probabilities add up to the score of a sentence."""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from training.settings.pretraining import WORD_L2R, PairsMethod

METHODS: tuple[PairsMethod, ...] = get_args(PairsMethod)

IntArray = npt.NDArray[np.int64]


class Predictions(NamedTuple):
    """Sentences, or masked copies of them, and what a model predicts in them.

    input_ids: [copies, S] int64. targets: [predictions] int64, flat among the copies' tokens, where the output is read.
    target_ids: [predictions] int64, the token whose probability counts. rows: [predictions] int64, for which sentence.
    """

    input_ids: IntArray
    targets: IntArray
    target_ids: IntArray
    rows: IntArray


def masked_copies(input_ids: IntArray, word_numbers: IntArray, mask_id: int, method: PairsMethod) -> Predictions:
    """One copy per token of sentences of one length, sentence after sentence.

    Args:
        input_ids: [sentences, S], from [CLS] to [SEP], which are not predicted.
        word_numbers: [sentences, S], equal for the pieces of one word.
        mask_id: the id of [MASK].
        method: see `PairsMethod`.
    """
    count, length = input_ids.shape
    positions = np.arange(length)
    targets = positions[1:-1]
    is_masked = positions == targets[:, None]
    copies_masked = np.broadcast_to(is_masked, (count, *is_masked.shape))
    if method == WORD_L2R:
        same_word = word_numbers[:, None, :] == word_numbers[:, 1:-1, None]
        copies_masked = same_word & (positions >= targets[:, None])
    copies = np.where(copies_masked, mask_id, input_ids[:, None, :]).reshape(-1, length)
    return Predictions(
        copies,
        np.arange(len(copies)) * length + np.tile(targets, count),
        input_ids[:, 1:-1].reshape(-1),
        np.repeat(np.arange(count), length - 2),
    )


def next_tokens(input_ids: IntArray) -> Predictions:
    """What a left-to-right model predicts in sentences of one length: each token but [CLS] and [SEP].

    Args:
        input_ids: [sentences, S], from [CLS] to [SEP].
    """
    count, length = input_ids.shape
    targets = (np.arange(count)[:, None] * length + np.arange(length - 2)).reshape(-1)
    return Predictions(input_ids, targets, input_ids[:, 1:-1].reshape(-1), np.repeat(np.arange(count), length - 2))
