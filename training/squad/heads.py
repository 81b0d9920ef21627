"""The output layer for spans: two logits per token (run_squad.py, create_model).

Tensor suffixes as in training/bert/modeling.py.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from training.bert.packing import PackedSequences
from training.bert.two_directions import build_encoder
from training.settings.model import ModelConfig


class BertForQuestionAnswering(nn.Module):
    """One dense layer on each token; keys of `state_dict` equal those of Hugging Face's class of the same name."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.bert = build_encoder(config, vocab_size, with_pooler=False)
        self.qa_outputs = nn.Linear(config.output_size, 2)

    def forward(self, sequences: PackedSequences) -> torch.Tensor:
        """Logits [T, 2] of a packed batch: the token starts the answer, the token ends it."""
        hidden_TH, _ = self.bert(sequences)
        logits_T2: torch.Tensor = self.qa_outputs(hidden_TH)
        return logits_T2


def span_loss_sum(
    logits_T2: torch.Tensor, starts_B: torch.Tensor, ends_B: torch.Tensor, packed: PackedSequences
) -> torch.Tensor:
    """Sum over sequences of half the cross-entropy of the start plus half that of the end (run_squad.py, model_fn).

    The softmax covers a sequence's own tokens. In the released code it covers padding, too, which the model must learn
    to avoid.

    Args:
        logits_T2: [T, 2].
        starts_B, ends_B: [B] int64, positions in their sequence.
        packed: the batch of the logits.

    Returns:
        [] float32.
    """
    lengths_B = packed.cu_seqlens.diff().long()
    numbers_B = torch.arange(packed.num_sequences, device=lengths_B.device)
    owners_T = torch.repeat_interleave(numbers_B, lengths_B, output_size=packed.num_tokens)
    logits_BS2 = logits_T2.new_full((packed.num_sequences, packed.max_seqlen, 2), -torch.inf, dtype=torch.float32)
    logits_BS2 = logits_BS2.index_put((owners_T, packed.position_ids_T), logits_T2.float())
    start_loss = functional.cross_entropy(logits_BS2[..., 0], starts_B, reduction="sum")
    end_loss = functional.cross_entropy(logits_BS2[..., 1], ends_B, reduction="sum")
    return (start_loss + end_loss) / 2
