"""The loss of a model that knows only token frequencies.

A model that is no better causes a warning, not an error: a short trial may be intended.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipelines.statistics.metrics import MLM_LOSS
from training.data.arrow_examples import ArrowExamples

BASELINE_TRAIN_ROWS = 16_384
"""Two million tokens at length 128: enough to estimate the frequency of every token that affects the mean."""


class UnigramBaseline(NamedTuple):
    """Held-out scores of a model that knows token frequencies but no context.

    loss: cross-entropy in nats. accuracy: of the best constant prediction.
    """

    loss: float
    accuracy: float


def unigram_baseline(
    train: ArrowExamples, heldout: ArrowExamples, max_heldout_rows: int, predicts_all_tokens: bool = False
) -> UnigramBaseline | None:
    """Score held-out tokens by the frequencies of training tokens; None without such rows.

    Counts tokens in the first rows of both, which are in random order: predicted ones, or all if they are chosen at
    reading, and with `predicts_all_tokens`. A token missing from the training rows counts once.
    """
    num_train, num_heldout = min(train.num_rows, BASELINE_TRAIN_ROWS), min(heldout.num_rows, max_heldout_rows)
    if not num_train or not num_heldout:
        return None
    # Restore the original tokens, so that [MASK] and random tokens do not count.
    train_ids = train.read(((0, num_train),)).without_masks().input_ids.values
    rows = heldout.read(((0, num_heldout),))
    predicted = rows.masked_lm_ids.values
    if predicts_all_tokens or not len(predicted):
        predicted = rows.without_masks().input_ids.values
    size = 1 + max(int(train_ids.max()), int(predicted.max()))
    counts, wanted = np.bincount(train_ids, minlength=size), np.bincount(predicted, minlength=size)
    met = np.maximum(counts, 1)
    loss = float(-(wanted * np.log(met / met.sum())).sum() / wanted.sum())
    return UnigramBaseline(loss, float(wanted.max() / wanted.sum()))


def baseline_warning(loss: float, baseline: float | None, label: str = MLM_LOSS.label) -> str | None:
    """A warning if the held-out loss of predicted tokens is no better than word frequencies alone; None otherwise."""
    if baseline is None or loss < baseline:
        return None
    return (
        f"held-out {label} {loss:.3f} is not below {baseline:.3f}, what the frequencies of words alone give: the "
        "model has learnt nothing from context; give pretraining.phases more steps, change pretraining.learning_rate, "
        "or look at the corpus"
    )
