"""Encoder plus the output layers of pre-training: masked LM, next sentence, next token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from training.bert.model_readme import TWO_DIRECTIONS
from training.bert.modeling import BertModel, activation
from training.bert.packing import PackedSequences
from training.bert.two_directions import TwoDirectionsModel
from training.kernels.losses import classification_loss, linear_cross_entropy, token_log_probabilities
from training.settings.model import ModelConfig


class PredictionTransform(nn.Module):
    """Dense, GELU, LayerNorm before the decoder (run_pretraining.py, get_masked_lm_output)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.hidden_act = config.hidden_act

    def forward(self, hidden_MH: torch.Tensor) -> torch.Tensor:
        result_MH: torch.Tensor = self.LayerNorm(activation(self.dense(hidden_MH), self.hidden_act))
        return result_MH


class TiedDecoder(nn.Module):
    """Output projection with the word embeddings' own matrix; a module of its own so that ZeRO-3 gathers the weight."""

    def __init__(self, weight_VH: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_VH

    def forward(
        self, hidden_MH: torch.Tensor, bias_V: torch.Tensor, labels_M: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return linear_cross_entropy(hidden_MH, self.weight, bias_V, labels_M)


class MaskedLMHead(nn.Module):
    def __init__(self, config: ModelConfig, weight_VH: nn.Parameter) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = TiedDecoder(weight_VH)
        self.bias = nn.Parameter(torch.zeros(weight_VH.shape[0]))

    def forward(self, hidden_MH: torch.Tensor, labels_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result: tuple[torch.Tensor, torch.Tensor] = self.decoder(self.transform(hidden_MH), self.bias, labels_M)
        return result

    def logits(self, hidden_MH: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.transform(hidden_MH), self.decoder.weight, self.bias)

    def log_probabilities(self, hidden_MH: torch.Tensor, ids_M: torch.Tensor) -> torch.Tensor:
        """Natural logarithm of the probability of each token: [M] float32."""
        return token_log_probabilities(self.transform(hidden_MH), self.decoder.weight, self.bias, ids_M)


class PreTrainingHeads(nn.Module):
    def __init__(self, config: ModelConfig, weight_VH: nn.Parameter, next_sentence: bool) -> None:
        super().__init__()
        self.predictions = MaskedLMHead(config, weight_VH)
        self.seq_relationship = nn.Linear(config.hidden_size, 2) if next_sentence else None


def tied_weight(encoder: BertModel) -> nn.Parameter:
    """The word embeddings' matrix [V, H], for an output layer that is computed in every step."""
    table = encoder.embeddings.word_embeddings
    table.is_tied = True
    assert isinstance(table.weight, nn.Parameter)
    return table.weight


class PreTrainingOutput(NamedTuple):
    """Sums over a micro-batch: losses [] float32, correct predictions [] int64; None if the task is absent."""

    mlm_loss_sum: torch.Tensor
    mlm_correct: torch.Tensor
    nsp_loss_sum: torch.Tensor | None
    nsp_correct: torch.Tensor | None


class BertForPreTraining(nn.Module):
    """BERT with both heads; keys of `state_dict` equal Hugging Face's class of the same name.

    Without `next_sentence` the model has neither that head nor the pooler, which only that head trains: keys are then
    those of Hugging Face's BertForMaskedLM.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, next_sentence: bool = True) -> None:
        super().__init__()
        self.predicts_next_tokens = config.predicts_next_tokens
        self.bert = BertModel(config, vocab_size, with_pooler=next_sentence)
        self.cls = PreTrainingHeads(config, tied_weight(self.bert), next_sentence)

    @classmethod
    def masked_lm(cls, config: ModelConfig, vocab_size: int) -> BertForPreTraining:
        """The model of masked LM alone."""
        return cls(config, vocab_size, next_sentence=False)

    @property
    def architecture(self) -> str:
        """Hugging Face's class that holds exactly these weights."""
        if self.bert.is_causal:
            return "BertLMHeadModel"
        return "BertForMaskedLM" if self.cls.seq_relationship is None else "BertForPreTraining"

    def forward(
        self,
        sequences: PackedSequences,
        masked_lm_positions_M: torch.Tensor,
        masked_lm_ids_M: torch.Tensor,
        next_sentence_label_B: torch.Tensor,
    ) -> PreTrainingOutput:
        """Compute the summed losses.

        Args:
            sequences: the packed batch.
            masked_lm_positions_M: [M] int64, flat positions among the T tokens where a token is predicted.
            masked_lm_ids_M: [M] int64, the tokens to predict: the original ones or, left to right, the next ones.
            next_sentence_label_B: [B] int64, 1 where segment B is random; ignored without `next_sentence`.
        """
        bert, num_masked = self.bert, len(masked_lm_positions_M)
        # After attention the last layer computes only the tokens that a head reads: masked ones, and each [CLS].
        read = masked_lm_positions_M
        if bert.pooler is not None:
            read = torch.cat([read, bert.pooled_tokens(sequences)])
        hidden_RH = bert.encoder(bert.embeddings(sequences), sequences, read)
        mlm_loss_sum, mlm_correct = self.cls.predictions(hidden_RH[:num_masked], masked_lm_ids_M)
        if self.cls.seq_relationship is None or bert.pooler is None:
            return PreTrainingOutput(mlm_loss_sum, mlm_correct, None, None)
        pooled_BH = bert.pooler(hidden_RH[num_masked:])
        nsp_loss_sum, nsp_correct = classification_loss(self.cls.seq_relationship(pooled_BH), next_sentence_label_B)
        return PreTrainingOutput(mlm_loss_sum, mlm_correct, nsp_loss_sum, nsp_correct)

    def log_probabilities(
        self, sequences: PackedSequences, positions_M: torch.Tensor, ids_M: torch.Tensor
    ) -> torch.Tensor:
        """Natural logarithm of the probability of each of these tokens where it is predicted: [M] float32."""
        hidden_MH = self.bert.encoder(self.bert.embeddings(sequences), sequences, positions_M)
        return self.cls.predictions.log_probabilities(hidden_MH, ids_M)


class TwoDirectionsForPreTraining(nn.Module):
    """A TwoDirectionsModel whose encoders predict the next token in their direction, each with a head of its own."""

    predicts_next_tokens = True
    architecture = f"{TWO_DIRECTIONS}ForPreTraining"

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.bert = TwoDirectionsModel(config, vocab_size, with_pooler=False)
        self.cls = nn.ModuleDict()
        for name, encoder in self._encoders().items():
            self.cls[name] = PreTrainingHeads(config, tied_weight(encoder), next_sentence=False)

    def forward(
        self,
        sequences: PackedSequences,
        masked_lm_positions_M: torch.Tensor,
        masked_lm_ids_M: torch.Tensor,
        _next_sentence_label_B: torch.Tensor,
    ) -> PreTrainingOutput:
        """Sums over both directions.

        Args:
            sequences: the packed batch.
            masked_lm_positions_M: [M] int64, flat positions of all tokens but the last of each sequence.
            masked_lm_ids_M: [M] int64, the tokens after them.
        """
        backward = sequences.in_order(sequences.reversed_order())
        loss_sum, correct = self._sums("left_to_right", sequences, masked_lm_positions_M, masked_lm_ids_M)
        # The same positions of the reversed sequences, all but their last ones.
        backward_ids_M = backward.input_ids_T[masked_lm_positions_M + 1]
        other_sum, other_correct = self._sums("right_to_left", backward, masked_lm_positions_M, backward_ids_M)
        return PreTrainingOutput(loss_sum + other_sum, correct + other_correct, None, None)

    def log_probabilities(
        self, sequences: PackedSequences, positions_M: torch.Tensor, ids_M: torch.Tensor
    ) -> torch.Tensor:
        """Sum over both directions of log P(token), [M] float32.

        Args:
            sequences: the packed batch.
            positions_M: [M] int64, flat positions before the predicted tokens; two further tokens follow each.
            ids_M: [M] int64, the predicted tokens.
        """
        order_T = sequences.reversed_order()
        parts = (
            ("left_to_right", sequences, positions_M),
            # From the other end, the token after the predicted one comes before it.
            ("right_to_left", sequences.in_order(order_T), order_T[positions_M + 2]),
        )
        found_M = torch.zeros(len(ids_M), device=ids_M.device)
        for name, part, places_M in parts:
            encoder = self._encoders()[name]
            hidden_MH = encoder.encoder(encoder.embeddings(part), part, places_M)
            found_M = found_M + self._head(name).log_probabilities(hidden_MH, ids_M)
        return found_M

    def _sums(
        self, name: str, sequences: PackedSequences, positions_M: torch.Tensor, ids_M: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        encoder = self._encoders()[name]
        hidden_MH = encoder.encoder(encoder.embeddings(sequences), sequences, positions_M)
        result: tuple[torch.Tensor, torch.Tensor] = self._head(name)(hidden_MH, ids_M)
        return result

    def _encoders(self) -> dict[str, BertModel]:
        return {"left_to_right": self.bert.left_to_right, "right_to_left": self.bert.right_to_left}

    def _head(self, name: str) -> MaskedLMHead:
        heads = self.cls[name]
        assert isinstance(heads, PreTrainingHeads)
        return heads.predictions


PreTrainingModel = BertForPreTraining | TwoDirectionsForPreTraining


def build_pretraining_model(config: ModelConfig, vocab_size: int, next_sentence: bool = False) -> PreTrainingModel:
    """The model that `model.attention` names, with its heads."""
    if config.attention == "two_directions":
        return TwoDirectionsForPreTraining(config, vocab_size)
    return BertForPreTraining(config, vocab_size, next_sentence)
