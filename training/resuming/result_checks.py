"""What a trained model has to be before its stage counts as complete, and a warning where it is no better than chance.

A run can end without an error and with a model of NaN, or with one that knows only how frequent words are. The first
is refused, the second is a warning: a short trial may well be meant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from pipelines.contract.errors import InputError
from training.data.step_reader import ArrowExamples

BASELINE_TRAIN_ROWS = 16_384
"""Two million tokens at length 128: enough to know the frequency of every token that matters to the mean."""


def result_fault(state: Mapping[str, torch.Tensor], metrics: Mapping[str, float]) -> str | None:
    """What of a model is not finite: a metric, or a weight; None where all is."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            return f"{name} is {value}"
    for name, tensor in state.items():
        # The sum of a tensor is finite only if all of it is, or if it overflows; then the elements decide.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            return f"{count:,} of {tensor.numel():,} weights of {name} are not finite"
    return None


def unusable(where: str, fault: str) -> str:
    """The line that refuses a model for what `result_fault` found."""
    return (
        f"{where}: the trained model is of no use: {fault}; it is not kept; lower learning_rate, keep max_grad_norm "
        "above 0, or warm up for longer, and train again"
    )


def require_finite(state: Mapping[str, torch.Tensor], metrics: Mapping[str, float], where: str) -> None:
    """Refuse a model that is not finite; to be called before its stage is complete.

    Args:
        state: the weights to be exported, by name.
        metrics: held-out or development scores; empty where nothing was held out.
        where: what the line begins with, such as the recipe's path.

    Raises:
        InputError: a metric or a weight is NaN or infinite.
    """
    if fault := result_fault(state, metrics):
        raise InputError(unusable(where, fault))


class UnigramBaseline(NamedTuple):
    """Held-out masked-LM scores of a model that knows how frequent each token is and nothing of its context.

    loss: cross-entropy in nats. accuracy: of the best answer that is always the same.
    """

    loss: float
    accuracy: float


def unigram_baseline(train: ArrowExamples, heldout: ArrowExamples, max_heldout_rows: int) -> UnigramBaseline | None:
    """Score held-out tokens by the frequencies of training tokens; None without such rows.

    Counted over the first rows of both, which are in random order: those that are predicted, or where masks are drawn
    at reading, all of them. A token that the training rows lack counts as if met once.
    """
    num_train, num_heldout = min(train.num_rows, BASELINE_TRAIN_ROWS), min(heldout.num_rows, max_heldout_rows)
    if not num_train or not num_heldout:
        return None
    # Restored, so that [MASK] and random tokens do not count.
    train_ids = train.read(((0, num_train),)).without_masks().input_ids.values
    rows = heldout.read(((0, num_heldout),))
    predicted = rows.masked_lm_ids.values if len(rows.masked_lm_ids.values) else rows.input_ids.values
    size = 1 + max(int(train_ids.max()), int(predicted.max()))
    counts, wanted = np.bincount(train_ids, minlength=size), np.bincount(predicted, minlength=size)
    met = np.maximum(counts, 1)
    loss = float(-(wanted * np.log(met / met.sum())).sum() / wanted.sum())
    return UnigramBaseline(loss, float(wanted.max() / wanted.sum()))


def baseline_warning(mlm_loss: float, baseline: float | None) -> str | None:
    """A line for a held-out masked-LM loss that word frequencies alone would reach; None where it is below."""
    if baseline is None or mlm_loss < baseline:
        return None
    return (
        f"held-out MLM loss {mlm_loss:.3f} is not below {baseline:.3f}, what the frequencies of words alone give: the "
        "model has learnt nothing from context; give pretraining.phases more steps, change pretraining.learning_rate, "
        "or look at the corpus"
    )
