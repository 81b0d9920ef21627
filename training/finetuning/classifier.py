"""The classifier of texts: an encoder, the head that makes one vector of a text, and a dense layer.

Tensor suffixes as in training/bert/modeling.py; F is the size of that vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence

from training.bert.model_readme import BILSTM_CLASSIFIER, SEGMENT_MEANS_CLASSIFIER
from training.bert.packing import PackedSequences
from training.bert.two_directions import build_encoder
from training.kernels.dropout import Dropout
from training.settings.finetuning import ClassifierHead
from training.settings.model import ModelConfig

NEW_PARTS = ("classifier.", "head.")
"""Prefixes of the parameters that an encoder does not have."""


class BiLstm(nn.Module):
    """A bidirectional LSTM over the encoder's output (paper, table 5, "+ BiLSTM")."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(hidden_size, hidden_size // 2, bidirectional=True)
        self.output_size = 2 * self.lstm.hidden_size

    def forward(self, hidden_TH: torch.Tensor, sequences: PackedSequences) -> torch.Tensor:
        """Both directions' states after their last token, one after the other: [B, F]."""
        lengths = sequences.cu_seqlens.diff().tolist()
        _, (last_2BH, _) = self.lstm(pack_sequence(list(torch.split(hidden_TH, lengths)), enforce_sorted=False))
        return torch.cat([last_2BH[0], last_2BH[1]], 1)


class SegmentMeans(nn.Module):
    """tanh of a dense layer on u, v, |u - v| and u * v, the means of the two segments' outputs (Conneau et al., 2017).

    [CLS] and the first [SEP] belong to segment A, the second [SEP] to B. Without a segment B v is zero.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.output_size = hidden_size
        self.dense = nn.Linear(4 * hidden_size, hidden_size)

    def forward(self, hidden_TH: torch.Tensor, sequences: PackedSequences) -> torch.Tensor:
        """[B, F]."""
        means_B2H = _segment_means(hidden_TH, sequences)
        u_BH, v_BH = means_B2H.unbind(1)
        return torch.tanh(self.dense(torch.cat([u_BH, v_BH, (u_BH - v_BH).abs(), u_BH * v_BH], 1)))


def _segment_means(hidden_TH: torch.Tensor, sequences: PackedSequences) -> torch.Tensor:
    """Mean over the tokens of segments A and B of each sequence: [B, 2, H]; sums are in fp32."""
    num_sequences, hidden_size = sequences.num_sequences, hidden_TH.shape[1]
    lengths_B = sequences.cu_seqlens.diff().long()
    # A given size, and sums of ones instead of bincount: a GPU waits for neither.
    rows_B = 2 * torch.arange(num_sequences, device=hidden_TH.device)
    rows_T = torch.repeat_interleave(rows_B, lengths_B, output_size=sequences.num_tokens) + sequences.token_type_ids_T
    sums_RH = torch.zeros(2 * num_sequences, hidden_size, device=hidden_TH.device)
    sums_RH = sums_RH.index_add(0, rows_T, hidden_TH.float())
    counts_R = torch.zeros(2 * num_sequences, device=hidden_TH.device)
    counts_R = counts_R.index_add(0, rows_T, torch.ones_like(rows_T, dtype=counts_R.dtype))
    return (sums_RH / counts_R.clamp(min=1)[:, None]).to(hidden_TH.dtype).view(num_sequences, 2, hidden_size)


@dataclass(frozen=True)
class _Kind:
    """A head and the name of the class that has it: `transformers`' own, or one of this project."""

    architecture: str
    module: type[BiLstm] | type[SegmentMeans] | None


_KINDS: dict[ClassifierHead, _Kind] = {
    "pooler": _Kind("BertForSequenceClassification", None),
    "bilstm": _Kind(BILSTM_CLASSIFIER, BiLstm),
    "segment_means": _Kind(SEGMENT_MEANS_CLASSIFIER, SegmentMeans),
}


class BertForSequenceClassification(nn.Module):
    """One dense layer on the vector of a text, after dropout (run_classifier.py, create_model).

    With a single label the output is a score, fitted by squared error (STS-B). The vector is the pooled output, or that
    of another head in the pooler's place.
    """

    def __init__(
        self, config: ModelConfig, vocab_size: int, num_labels: int, classifier_head: ClassifierHead = "pooler"
    ) -> None:
        super().__init__()
        module = _KINDS[classifier_head].module
        self.bert = build_encoder(config, vocab_size, with_pooler=module is None)
        self.head = None if module is None else module(config.output_size)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.output_size if self.head is None else self.head.output_size, num_labels)

    @staticmethod
    def architecture(classifier_head: ClassifierHead) -> str:
        """The class of `transformers` that holds these weights, or a name of our own if there is none."""
        return _KINDS[classifier_head].architecture

    def forward(self, sequences: PackedSequences) -> torch.Tensor:
        """Logits [B, C] of a packed batch."""
        if self.head is None:
            features_BF = self.bert.pooled(sequences)
        else:
            features_BF = self.head(self.bert(sequences)[0], sequences)
        logits_BC: torch.Tensor = self.classifier(self.dropout(features_BF))
        return logits_BC

    @staticmethod
    def loss(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        """Mean loss of a batch; labels_B holds int64 classes, or float scores if there is a single label."""
        if logits_BC.shape[1] == 1:
            return functional.mse_loss(logits_BC.float().squeeze(1), labels_B.float())
        return functional.cross_entropy(logits_BC.float(), labels_B)
