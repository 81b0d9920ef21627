"""Tagging by features: hidden states of an encoder that is not trained, under a BiLSTM (section 5.3, table 7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from pipelines.contract.errors import InputError
from training.bert.modeling import BertModel, chosen_layers, hidden_states
from training.bert.packing import PackedSequences
from training.settings.model import ModelConfig

NEW_PARTS = ("mixture", "bilstm.", "classifier.")
"""Prefixes of the parameters that are trained."""


class FeaturesForTokenClassification(nn.Module):
    """A BiLSTM of two layers on chosen hidden states, and one dense layer; the encoder gets no gradients or dropout.

    The states of several layers are concatenated, or summed with learnt weights: a softmax over one number for each
    layer, equal at first (Peters et al., 2018, equation 1, without the scale, which the LSTM's first product has).
    """

    def __init__(
        self, config: ModelConfig, vocab_size: int, num_labels: int, layers: Sequence[int], is_sum: bool = False
    ) -> None:
        """Build the model.

        Args:
            config: of the encoder.
            vocab_size: of the encoder.
            num_labels: classes of a token.
            layers: 0 for the embeddings' output, 1 to L for the layers; negative numbers count from the last, -1.
            is_sum: sum the states with learnt weights instead of concatenating them.

        Raises:
            InputError: the encoder has no such layer, or has two directions.
        """
        super().__init__()
        if config.attention == "two_directions":
            raise InputError("finetuning.tagging.feature_layers needs one encoder, and this model has two; remove it")
        found = chosen_layers(layers, config.num_hidden_layers, "finetuning.tagging.feature_layers")
        self.register_buffer("layers_L", torch.from_numpy(found), persistent=False)
        self.bert = BertModel(config, vocab_size, with_pooler=False).requires_grad_(False)
        self.mixture = nn.Parameter(torch.zeros(len(found))) if is_sum else None
        size = config.hidden_size if is_sum else len(found) * config.hidden_size
        self.bilstm = nn.LSTM(size, config.hidden_size // 2, num_layers=2, bidirectional=True)
        self.classifier = nn.Linear(2 * (config.hidden_size // 2), num_labels)

    def train(self, mode: bool = True) -> FeaturesForTokenClassification:
        super().train(mode)
        self.bert.eval()
        return self

    def forward(self, sequences: PackedSequences) -> torch.Tensor:
        """Logits [T, C] of a packed batch."""
        features_TF = self.features(sequences)
        lengths = sequences.cu_seqlens.diff().tolist()
        packed = pack_sequence(list(torch.split(features_TF, lengths)), enforce_sorted=False)
        states_TH = torch.cat(unpack_sequence(self.bilstm(packed)[0]))
        logits_TC: torch.Tensor = self.classifier(states_TH)
        return logits_TC

    def features(self, sequences: PackedSequences) -> torch.Tensor:
        """What the LSTM reads: [T, layers * H], or [T, H] for a sum."""
        assert isinstance(self.layers_L, torch.Tensor)
        with torch.no_grad():
            states_TF = hidden_states(self.bert, sequences, self.layers_L.tolist())
        if self.mixture is None:
            return states_TF
        weights_L = torch.softmax(self.mixture, 0)
        states_TLH = states_TF.reshape(len(states_TF), len(weights_L), -1)
        return torch.einsum("tlh,l->th", states_TLH, weights_L)
