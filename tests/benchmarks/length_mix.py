"""Synthetic pre-training batches with the lengths that BERT's corpora have, packed for us and padded for the peer.

Of the 512 tokens that a row of Wikipedia examples may have, about 254 are filled. Here 12 % of the rows are full and
the others anything up to seven eighths, which gives that mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.bert.packing import PackedSequences, pack
from training.pretraining.bert_objective import pretraining_loss

CLS_ID, SEP_ID, MASK_ID = 101, 102, 103
FIRST_WORD_ID = 999
FULL_SHARE, LONGEST_OTHER = 0.12, 7 / 8
MASKED_SHARE = 0.15


@dataclass(frozen=True)
class Batch:
    """The same rows in both forms; `labels_BS` is -100 where nothing is predicted."""

    sequences: PackedSequences
    masked_lm_positions_M: torch.Tensor
    masked_lm_ids_M: torch.Tensor
    next_sentence_label_B: torch.Tensor
    input_ids_BS: torch.Tensor
    token_type_ids_BS: torch.Tensor
    attention_mask_BS: torch.Tensor
    labels_BS: torch.Tensor

    @property
    def num_tokens(self) -> int:
        return self.sequences.num_tokens

    @property
    def squared_tokens(self) -> int:
        lengths = np.diff(self.sequences.cu_seqlens.cpu().numpy().astype(np.int64))
        return int((lengths**2).sum())


def natural_lengths(generator: np.random.Generator, count: int, max_seq_length: int) -> NDArray[np.int64]:
    """Row lengths of a natural mix, in tokens."""
    others = generator.integers(5, int(LONGEST_OTHER * max_seq_length), count)
    return np.where(generator.random(count) < FULL_SHARE, max_seq_length, others)


def make_batch(
    seed: int,
    num_sequences: int,
    max_seq_length: int,
    vocab_size: int,
    device: torch.device | str = "cpu",
    with_plan: bool = True,
    full_rows: bool = False,
) -> Batch:
    """A random batch, longest row first; `full_rows` leaves no padding to save."""
    generator = np.random.default_rng(seed)
    lengths = natural_lengths(generator, num_sequences, max_seq_length)
    if full_rows:
        lengths[:] = max_seq_length
    lengths = -np.sort(-lengths)
    segment_b = np.array([int(generator.integers(3, max(4, length - 1))) for length in lengths])
    padded = np.zeros((num_sequences, max_seq_length), np.int64)
    labels = np.full_like(padded, -100)
    for row, (length, start) in enumerate(zip(lengths, segment_b, strict=True)):
        padded[row, :length] = generator.integers(FIRST_WORD_ID, vocab_size, length)
        padded[row, [0, start - 1, length - 1]] = CLS_ID, SEP_ID, SEP_ID
        words = np.setdiff1d(np.arange(1, length - 1), [start - 1])
        chosen = generator.choice(words, min(len(words), max(1, round(MASKED_SHARE * length))), replace=False)
        labels[row, chosen] = padded[row, chosen]
        padded[row, chosen] = MASK_ID
    real = np.arange(max_seq_length) < lengths[:, None]
    flat_labels = labels[real]
    positions = np.flatnonzero(flat_labels >= 0)
    types = (np.arange(max_seq_length) >= segment_b[:, None]) & real

    def there(array: NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(device)

    return Batch(
        sequences=pack(padded[real], lengths, segment_b, with_plan).to(torch.device(device)),
        masked_lm_positions_M=there(positions),
        masked_lm_ids_M=there(flat_labels[positions]),
        next_sentence_label_B=there(generator.integers(0, 2, num_sequences)),
        input_ids_BS=there(padded),
        token_type_ids_BS=there(types),
        attention_mask_BS=there(real),
        labels_BS=there(labels),
    )


def our_loss(model: Callable[..., Any], batch: Batch) -> torch.Tensor:
    """Mean masked-LM plus mean next-sentence loss of our model, or of an engine around it."""
    output = model(batch.sequences, batch.masked_lm_positions_M, batch.masked_lm_ids_M, batch.next_sentence_label_B)
    return pretraining_loss(
        output.mlm_loss_sum, output.nsp_loss_sum, len(batch.masked_lm_ids_M), len(batch.next_sentence_label_B)
    )


def peer_loss(model: Callable[..., Any], batch: Batch) -> torch.Tensor:
    """The same loss of `transformers`, on the padded form of the rows."""
    loss: torch.Tensor = model(
        input_ids=batch.input_ids_BS,
        attention_mask=batch.attention_mask_BS,
        token_type_ids=batch.token_type_ids_BS,
        labels=batch.labels_BS,
        next_sentence_label=batch.next_sentence_label_B,
    ).loss
    return loss
