"""Two encoders that read a text from opposite ends, trained separately and joined by concatenation (ELMo's way).

The paper names this alternative to one bidirectional model in section 5.1; Peters et al., 2018, section 3.1, is its
source. Each direction has its own embeddings and layers, and learns from its own loss only.
"""

from __future__ import annotations

import torch
from torch import nn

from training.bert.modeling import BertModel, BertPooler
from training.bert.packing import PackedSequences
from training.settings.model import ModelConfig


class TwoDirectionsModel(nn.Module):
    """A left-to-right BERT, and one that reads each sequence reversed; used as a BertModel of twice the width."""

    def __init__(self, config: ModelConfig, vocab_size: int, with_pooler: bool = True) -> None:
        super().__init__()
        one = config.model_copy(update={"attention": "left_to_right"})
        self.left_to_right = BertModel(one, vocab_size, with_pooler=False)
        self.right_to_left = BertModel(one, vocab_size, with_pooler=False)
        self.pooler = BertPooler(config.output_size) if with_pooler else None

    def forward(self, sequences: PackedSequences) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode a packed batch.

        Returns:
            hidden_TF [T, 2H], of each token the states of both directions; pooled_BF [B, 2H], from the states after
            the last token that each direction reads, None without a pooler.
        """
        order_T = sequences.reversed_order()
        forward_TH, _ = self.left_to_right(sequences)
        backward_TH, _ = self.right_to_left(sequences.in_order(order_T))
        # The reversed order is its own inverse.
        hidden_TF = torch.cat([forward_TH, backward_TH.index_select(0, order_T)], 1)
        if self.pooler is None:
            return hidden_TF, None
        last_B = sequences.last_tokens()
        return hidden_TF, self.pooler(torch.cat([forward_TH[last_B], backward_TH[last_B]], 1))

    def pooled(self, sequences: PackedSequences) -> torch.Tensor:
        """pooled_BF [B, 2H] only."""
        pooled_BF = self(sequences)[1]
        assert isinstance(pooled_BF, torch.Tensor)
        return pooled_BF


Encoder = BertModel | TwoDirectionsModel


def build_encoder(config: ModelConfig, vocab_size: int, with_pooler: bool = True) -> Encoder:
    """The encoder that `model.attention` names; its outputs are `config.output_size` wide."""
    kind = TwoDirectionsModel if config.attention == "two_directions" else BertModel
    return kind(config, vocab_size, with_pooler)
