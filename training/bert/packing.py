"""Packed batches: the tokens of several sequences concatenated, without padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from training.kernels.length_bins import AttentionPlan, plan_attention

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PackedSequences:
    """The encoder's input; suffixes as in training/bert/modeling.py.

    input_ids_T, token_type_ids_T, position_ids_T: [T] int64. first_tokens_B: [B] int64, position of each [CLS].
    cu_seqlens: [B+1] int32. max_seqlen: tokens of the longest sequence. plan: length bins, None if the
    variable-length kernel is used.
    """

    input_ids_T: torch.Tensor
    token_type_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    first_tokens_B: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    plan: AttentionPlan | None

    @property
    def num_tokens(self) -> int:
        return int(self.input_ids_T.shape[0])

    @property
    def num_sequences(self) -> int:
        return int(self.first_tokens_B.shape[0])

    def last_tokens(self) -> torch.Tensor:
        """Position of each sequence's last token, [B] int64."""
        return self.cu_seqlens[1:].long() - 1

    def reversed_order(self) -> torch.Tensor:
        """For each token the position of the one as far from its sequence's other end: [T] int64, its own inverse."""
        ends_B = (self.cu_seqlens[:-1] + self.cu_seqlens[1:] - 1).long()
        numbers_T = torch.arange(self.num_tokens, device=ends_B.device)
        lengths_B = self.cu_seqlens.diff().long()
        return torch.repeat_interleave(ends_B, lengths_B, output_size=self.num_tokens) - numbers_T

    def in_order(self, order_T: torch.Tensor) -> PackedSequences:
        """The same sequences with their tokens in another order; positions count from the new first ones."""
        return replace(self, input_ids_T=self.input_ids_T[order_T], token_type_ids_T=self.token_type_ids_T[order_T])

    def to(self, device: torch.device) -> PackedSequences:
        """Copy to a device, without waiting if the tensors are pinned."""
        if self.input_ids_T.device == device:
            return self
        return self.moved(lambda tensor: tensor.to(device, non_blocking=True))

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> PackedSequences:
        """The batch with all its tensors passed through `move`."""
        return replace(
            self,
            input_ids_T=move(self.input_ids_T),
            token_type_ids_T=move(self.token_type_ids_T),
            position_ids_T=move(self.position_ids_T),
            first_tokens_B=move(self.first_tokens_B),
            cu_seqlens=move(self.cu_seqlens),
            plan=None if self.plan is None else self.plan.moved(move),
        )


def pack(
    input_ids: npt.NDArray[np.integer],
    lengths: IntArray,
    segment_b_starts: IntArray,
    with_plan: bool = True,
) -> PackedSequences:
    """Build the encoder's input, on the CPU, from tokens, lengths and the starts of segment B.

    Args:
        input_ids: [T] integers, sequence after sequence.
        lengths: [B], tokens of each sequence; rows in descending order of length need the fewest copies.
        segment_b_starts: [B], position of segment B's first token, or the length if there is no B.
        with_plan: build the length bins.
    """
    cu_seqlens = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=cu_seqlens[1:])
    position_ids = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
    token_type_ids = (position_ids >= np.repeat(segment_b_starts, lengths)).astype(np.int64)
    return PackedSequences(
        input_ids_T=torch.from_numpy(input_ids.astype(np.int64)),
        token_type_ids_T=torch.from_numpy(token_type_ids),
        position_ids_T=torch.from_numpy(position_ids),
        first_tokens_B=torch.from_numpy(cu_seqlens[:-1].copy()),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(lengths.max(initial=0)),
        plan=plan_attention(cu_seqlens) if with_plan else None,
    )
