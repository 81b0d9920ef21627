"""Packed sequences cut into bins of nearly equal length, for attention that needs padded rows.

Sequences are ordered by length, so padding inside a bin stays below an eighth of its tokens (below 18 % where its
rows are aligned); sequences of up to 32 tokens share one. A bin of one length whose tokens are contiguous is a plain
view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

MAX_PADDED_SHARE = 0.125
_ALIGNED_TOKENS, _MAX_ALIGNING_SHARE = 16, 1 / 16
"""Rows that are gathered have a multiple of these tokens where that adds so little: with AMX a row of 384 takes two
thirds of the time of one of 381."""
_SHORT_TOKENS = 32
"""Rows up to this length share a bin: another one costs more than their padding, as attention of so few tokens is less
than a hundredth of a layer."""


@dataclass(frozen=True)
class LengthBin:
    """Sequences of nearly equal length, computed by one attention call.

    Either `start_token` is set (B contiguous sequences of exactly S tokens start there), or `tokens_BS` (int64)
    gathers them, with `mask_B11S` (bool, True = real token) marking padding.
    """

    num_sequences: int
    max_seqlen: int
    start_token: int | None
    tokens_BS: torch.Tensor | None
    mask_B11S: torch.Tensor | None

    @property
    def num_rows(self) -> int:
        """Tokens and padding."""
        return self.num_sequences * self.max_seqlen

    def rows_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The bin's part of a tensor [T, ...]: [B, S, ...], in padding the values of the sequence's first token."""
        shape = (self.num_sequences, self.max_seqlen, *tensor.shape[1:])
        if self.start_token is not None:
            return tensor[self.start_token : self.start_token + self.num_rows].view(shape)
        assert self.tokens_BS is not None
        return tensor.index_select(0, self.tokens_BS.view(-1)).view(shape)


@dataclass(frozen=True)
class AttentionPlan:
    """The bins of one packed batch, shared by all layers.

    `restore_T` [T] int64 maps each token to its row in the bins' joined output; None if they are in order already.
    """

    bins: tuple[LengthBin, ...]
    restore_T: torch.Tensor | None

    def tokens_of(self, rows: torch.Tensor) -> torch.Tensor:
        """A tensor [T, ...] from the bins' joined rows."""
        return rows if self.restore_T is None else rows.index_select(0, self.restore_T)

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> AttentionPlan:
        """The plan with all its tensors passed through `move`."""

        def optional(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else move(tensor)

        bins = [
            replace(part, tokens_BS=optional(part.tokens_BS), mask_B11S=optional(part.mask_B11S)) for part in self.bins
        ]
        return AttentionPlan(tuple(bins), optional(self.restore_T))


def plan_attention(cu_seqlens: npt.NDArray[np.int64] | torch.Tensor) -> AttentionPlan:
    """Cut a packed batch into length bins; the index tensors are on the CPU.

    Args:
        cu_seqlens: [B+1], integers on the CPU; sequence i holds tokens cu_seqlens[i] to cu_seqlens[i+1].
    """
    offsets = np.asarray(cu_seqlens, dtype=np.int64)
    lengths = np.diff(offsets)
    assert lengths.min(initial=1) > 0, "a sequence without tokens"
    order = np.argsort(-lengths, kind="stable")
    bins: list[LengthBin] = []
    restore = np.empty(int(offsets[-1]), dtype=np.int64)
    row = 0
    for first, last in _bin_edges(lengths[order]):
        members = order[first:last]
        row += _add_bin(bins, offsets[members], lengths[members], restore, row)
    identity = row == len(restore) and bool((restore == np.arange(row)).all())
    return AttentionPlan(tuple(bins), None if identity else torch.from_numpy(restore))


def _bin_edges(descending_lengths: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    edges: list[tuple[int, int]] = []
    first, total = 0, len(descending_lengths)
    tokens_before = np.concatenate([[0], np.cumsum(descending_lengths)])
    while first < total:
        longest = int(descending_lengths[first])
        if longest <= _SHORT_TOKENS:
            edges.append((first, total))
            break
        counts = np.arange(1, total - first + 1)
        real = tokens_before[first + 1 :] - tokens_before[first]
        fits = real >= (1.0 - MAX_PADDED_SHARE) * counts * longest
        last = first + int(np.flatnonzero(fits)[-1]) + 1
        edges.append((first, last))
        first = last
    return edges


def _add_bin(
    bins: list[LengthBin],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    restore: npt.NDArray[np.int64],
    first_row: int,
) -> int:
    count, longest = len(starts), int(lengths[0])
    is_view = int(lengths[-1]) == longest and bool((np.diff(starts) == longest).all())
    aligned = -(-longest // _ALIGNED_TOKENS) * _ALIGNED_TOKENS
    if not is_view and aligned <= (1 + _MAX_ALIGNING_SHARE) * longest:
        longest = aligned
    positions = np.arange(longest)
    tokens = starts[:, None] + positions
    real = positions < lengths[:, None]
    rows = np.arange(first_row, first_row + count * longest).reshape(count, longest)
    restore[tokens[real]] = rows[real]
    if is_view:
        bins.append(LengthBin(count, longest, int(starts[0]), None, None))
    else:
        gather = torch.from_numpy(np.where(real, tokens, starts[:, None]))
        mask = None if bool(real.all()) else torch.from_numpy(real[:, None, None, :])
        bins.append(LengthBin(count, longest, None, gather, mask))
    return count * longest
