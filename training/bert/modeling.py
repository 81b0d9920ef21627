"""The BERT encoder of google-research/bert, modeling.py, on packed tokens instead of padded ones.

Post-LayerNorm Transformer (paper, section 3; Vaswani et al. 2017): x = LayerNorm(x + Dropout(sublayer(x))), eps 1e-12,
weights from a truncated normal of deviation 0.02, dropout 0.1 on embeddings, sublayers and attention probabilities,
a tanh pooler on [CLS]. Modules are named so that `state_dict` keys equal those of Hugging Face's BERT.

Shape suffixes, read left to right as the tensor's axes:
    T  packed tokens of the batch       B  sequences                 S  positions of one sequence
    H  hidden_size                      N  attention heads           D  size of a head, H / N
    I  intermediate_size                V  vocabulary                M  masked positions of the batch
    C  classes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipelines.contract.errors import InputError
from training.bert.packing import IntArray, PackedSequences
from training.kernels.dropout import Dropout
from training.kernels.embedding import Embedding
from training.kernels.packed_attention import packed_attention
from training.settings.model import ModelConfig


def activation(hidden_TI: torch.Tensor, hidden_act: str) -> torch.Tensor:
    """GELU: `gelu` is the exact one, `gelu_new` the tanh approximation (modeling.py, `gelu`)."""
    return functional.gelu(hidden_TI, approximate="tanh" if hidden_act == "gelu_new" else "none")


class BertEmbeddings(nn.Module):
    """Sum of word, position and token-type embeddings, LayerNorm, dropout (embedding_postprocessor)."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.word_embeddings = Embedding(vocab_size, config.hidden_size)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, sequences: PackedSequences) -> torch.Tensor:
        embedded_TH = self.word_embeddings(sequences.input_ids_T)
        embedded_TH = embedded_TH + self.position_embeddings(sequences.position_ids_T)
        embedded_TH = embedded_TH + self.token_type_embeddings(sequences.token_type_ids_T)
        result_TH: torch.Tensor = self.dropout(self.LayerNorm(embedded_TH))
        return result_TH


class BertSelfAttention(nn.Module):
    """Multi-head self-attention without its output projection (attention_layer)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.head_size = config.head_size
        self.dropout_p = config.attention_probs_dropout_prob
        self.is_causal = config.is_causal
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_TH: torch.Tensor, sequences: PackedSequences) -> torch.Tensor:
        attended_TND = packed_attention(
            self._projected(hidden_TH),
            sequences.cu_seqlens,
            sequences.max_seqlen,
            self.dropout_p if self.training else 0.0,
            sequences.plan,
            self.is_causal,
        )
        return attended_TND.reshape(hidden_TH.shape)

    def _projected(self, hidden_TH: torch.Tensor) -> torch.Tensor:
        """Query, key and value: [T, 3, N, D]."""
        layers = (self.query, self.key, self.value)
        if hasattr(self.query.weight, "ds_id"):
            # ZeRO-3 gathers the weights of a module that is called.
            shape_TND = (-1, self.num_attention_heads, self.head_size)
            return torch.stack([layer(hidden_TH).view(shape_TND) for layer in layers], dim=1)
        # One product for all three; joining the weights copies far less than the tokens.
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        joined = functional.linear(hidden_TH, weight, bias)
        return joined.view(-1, 3, self.num_attention_heads, self.head_size)


class BertResidualOutput(nn.Module):
    """Projection, dropout, residual, LayerNorm: the end of both sublayers."""

    def __init__(self, config: ModelConfig, input_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, sublayer: torch.Tensor, residual_TH: torch.Tensor) -> torch.Tensor:
        result_TH: torch.Tensor = self.LayerNorm(self.dropout(self.dense(sublayer)) + residual_TH)
        return result_TH


class BertAttention(nn.Module):
    """Groups the two parts of a layer's first half under the released code's names; BertLayer calls them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertResidualOutput(config, config.hidden_size)


class BertIntermediate(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.hidden_act = config.hidden_act

    def forward(self, hidden_TH: torch.Tensor) -> torch.Tensor:
        return activation(self.dense(hidden_TH), self.hidden_act)


class BertLayer(nn.Module):
    """One Transformer block: self-attention, then the feed-forward sublayer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertResidualOutput(config, config.intermediate_size)

    def forward(
        self, hidden_TH: torch.Tensor, sequences: PackedSequences, tokens_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Output for all tokens or, with `tokens_B`, for those only: [B, H]."""
        context_TH = self.attention.self(hidden_TH, sequences)
        if tokens_B is not None:
            context_TH, hidden_TH = context_TH.index_select(0, tokens_B), hidden_TH.index_select(0, tokens_B)
        return self.after_attention(context_TH, hidden_TH)

    def after_attention(self, context_TH: torch.Tensor, hidden_TH: torch.Tensor) -> torch.Tensor:
        """The token-wise part, which `compile_layers` compiles on its own where attention is in length bins."""
        attended_TH = self.attention.output(context_TH, hidden_TH)
        result_TH: torch.Tensor = self.output(self.intermediate(attended_TH), attended_TH)
        return result_TH


class BertEncoder(nn.Module):
    """The layers; with `activation_checkpointing` each stores only its input and is recomputed in backward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([BertLayer(config) for _ in range(config.num_hidden_layers)])
        self.activation_checkpointing = False

    def forward(
        self, hidden_TH: torch.Tensor, sequences: PackedSequences, tokens_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Output of the last layer for all tokens or, with `tokens_B`, for those only: [B, H]."""
        for index, layer in enumerate(self.layer):
            wanted_B = tokens_B if index + 1 == len(self.layer) else None
            if self.activation_checkpointing and torch.is_grad_enabled():
                # checkpoint() restores the generators, so dropout draws the same numbers in recomputation.
                hidden_TH = checkpoint(layer, hidden_TH, sequences, wanted_B, use_reentrant=False)
            else:
                hidden_TH = layer(hidden_TH, sequences, wanted_B)
        return hidden_TH


class BertPooler(nn.Module):
    """tanh of a dense layer on the token that stands for its sequence (BertModel, `pooler`)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, pooled_BH: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(pooled_BH))


class BertModel(nn.Module):
    """Embeddings, encoder and, with `with_pooler`, the pooler."""

    def __init__(self, config: ModelConfig, vocab_size: int, with_pooler: bool = True) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(config, vocab_size)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config.hidden_size) if with_pooler else None
        self.is_causal = config.is_causal

    def forward(self, sequences: PackedSequences) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode a packed batch.

        Returns:
            hidden_TH [T, H], the last layer's output, and pooled_BH [B, H], None without a pooler.
        """
        hidden_TH = self.encoder(self.embeddings(sequences), sequences)
        if self.pooler is None:
            return hidden_TH, None
        return hidden_TH, self.pooler(hidden_TH.index_select(0, self.pooled_tokens(sequences)))

    def pooled(self, sequences: PackedSequences) -> torch.Tensor:
        """pooled_BH [B, H] only: after attention the last layer computes just the pooled tokens."""
        assert self.pooler is not None
        pooled_BH: torch.Tensor = self.pooler(
            self.encoder(self.embeddings(sequences), sequences, self.pooled_tokens(sequences))
        )
        return pooled_BH

    def pooled_tokens(self, sequences: PackedSequences) -> torch.Tensor:
        """Position of the token that stands for each sequence, [B] int64: [CLS], or with causal attention the last one.

        That is the only one that attends to the complete sequence, as GPT's (Radford et al., 2018, section 3.3).
        """
        return sequences.last_tokens() if self.is_causal else sequences.first_tokens_B


def hidden_states(model: BertModel, sequences: PackedSequences, layers: Sequence[int]) -> torch.Tensor:
    """Chosen hidden states of each token, concatenated.

    Args:
        model: the encoder.
        sequences: the packed batch, on the model's device.
        layers: 0 for the embeddings' output, L for that of layer L; layers above the highest are not computed.

    Returns:
        [T, len(layers) * H] on the model's device.
    """
    hidden_TH = model.embeddings(sequences)
    found = {0: hidden_TH}
    for index in range(max(layers)):
        hidden_TH = model.encoder.layer[index](hidden_TH, sequences)
        found[index + 1] = hidden_TH
    return torch.cat([found[layer] for layer in layers], dim=1)


def chosen_layers(numbers: Sequence[int], num_hidden_layers: int, setting: str = "--layers") -> IntArray:
    """Layer numbers from 0 (embeddings) to num_hidden_layers; negative ones count from the last layer, -1.

    Args:
        numbers: as a user gives them.
        num_hidden_layers: of the encoder.
        setting: name of the option or setting that has them, for errors.

    Raises:
        InputError: the encoder has no such layer, or one is named twice.
    """
    layers = [number if number >= 0 else num_hidden_layers + 1 + number for number in numbers]
    for number, layer in zip(numbers, layers, strict=True):
        if not 0 <= layer <= num_hidden_layers:
            raise InputError(
                f"{setting} names {number}; this encoder has 0 (embeddings) to {num_hidden_layers}, or "
                f"{-num_hidden_layers - 1} to -1 counted from its last; choose others"
            )
    if len(set(layers)) < len(layers):
        raise InputError(f"{setting} {','.join(map(str, numbers))} names a layer twice; remove one")
    return np.array(layers, dtype=np.int64)


def checkpoint_activations(model: nn.Module, is_on: bool) -> None:
    """Set `activation_checkpointing` of all encoders of a model."""
    for module in model.modules():
        if isinstance(module, BertEncoder):
            module.activation_checkpointing = is_on


def compile_layers(model: nn.Module) -> None:
    """Compile every layer, or without the variable-length kernel its token-wise part.

    The number of tokens is symbolic and all layers share the code, so a run compiles only a few graphs for training
    and evaluation, and none for new lengths. The kernel is one operator of the graph. Attention in length bins is a
    loop, whose number and sizes change with every batch, and is not compiled.
    """
    for layer in model.modules():
        if isinstance(layer, BertLayer):
            _compile_layer(layer)


def _compile_layer(layer: BertLayer) -> None:
    complete, in_bins = torch.compile(layer.forward, dynamic=True), layer.forward
    layer.after_attention = torch.compile(layer.after_attention, dynamic=True)  # type: ignore[method-assign]

    def forward(
        hidden_TH: torch.Tensor, sequences: PackedSequences, tokens_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        has_kernel = sequences.plan is None and hidden_TH.is_cuda
        result_TH: torch.Tensor = (complete if has_kernel else in_bins)(hidden_TH, sequences, tokens_B)
        return result_TH

    layer.forward = forward  # type: ignore[method-assign]


def initialize_weights(model: nn.Module, initializer_range: float, seed: int) -> None:
    """Initialize all weights from `seed` alone: the same on every rank and for any number of ranks.

    Matrices are drawn from a normal distribution truncated at two deviations (tf.truncated_normal_initializer in
    modeling.py, `create_initializer`), biases are 0 and LayerNorm scales 1.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("LayerNorm.weight"):
            nn.init.ones_(parameter)
        elif parameter.ndim < 2:
            nn.init.zeros_(parameter)
        else:
            bound = 2.0 * initializer_range
            nn.init.trunc_normal_(parameter, std=initializer_range, a=-bound, b=bound, generator=generator)


def parameter_count(model: nn.Module) -> int:
    """Trainable parameters, a tied one counted once."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
