"""The masked-LM loss of a model that knows only how frequent each token is.

A model that is no better is a warning, not an error: a short trial may well be meant.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from training.data.arrow_examples import ArrowExamples

BASELINE_TRAIN_ROWS = 16_384
"""Two million tokens at length 128: enough to know the frequency of every token that matters to the mean."""


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
