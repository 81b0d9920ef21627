"""Batches of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from training.bert.packing import PackedSequences


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass of the pre-training model; suffixes as in training/bert/modeling.py.

    masked_lm_positions_M (flat, among T tokens), masked_lm_ids_M: [M] int64. next_sentence_label_B: [B] int64.
    """

    sequences: PackedSequences
    masked_lm_positions_M: torch.Tensor
    masked_lm_ids_M: torch.Tensor
    next_sentence_label_B: torch.Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """Copy to a device, without waiting if the tensors are pinned."""
        if self.masked_lm_ids_M.device == device:
            return self
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> MicroBatch:
        """Copy to page-locked memory, which a GPU reads while the CPU works on."""
        return self._moved(torch.Tensor.pin_memory)

    def _moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
        return MicroBatch(
            sequences=self.sequences.moved(move),
            masked_lm_positions_M=move(self.masked_lm_positions_M),
            masked_lm_ids_M=move(self.masked_lm_ids_M),
            next_sentence_label_B=move(self.next_sentence_label_B),
        )


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of one optimizer step, with the sizes of the complete step over all ranks.

    global_squared_tokens: sum of the rows' squared lengths, to which attention's cost is proportional.
    next_position: where in the global order the next step starts; stored in checkpoints.
    """

    micro_batches: tuple[MicroBatch, ...]
    global_masked_tokens: int
    global_sequences: int
    global_tokens: int
    global_squared_tokens: int
    next_position: int
