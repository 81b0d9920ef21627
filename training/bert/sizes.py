"""Formulas for the arithmetic, memory and disk space of a model; light to import, without torch.

Operations are counted as in PaLM (Chowdhery et al., 2022, appendix B) and Megatron-LM, forward and backward
together, for real tokens only: padding and recomputation add nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from training.settings.model import ModelConfig
from training.settings.pretraining import PretrainingConfig

HALF_BYTES, SINGLE_BYTES = 2, 4
_MOMENTS = 2


def step_flops(
    model: ModelConfig,
    vocab_size: int,
    tokens: float,
    squared_tokens: float,
    masked_tokens: float,
    paired_sequences: float = 0,
    reads_all_tokens: bool = False,
) -> float:
    """Floating-point operations of one training step, forward and backward.

    6 ((L - 1) (A + F) + A) T + 6 F R + 12 L H sum(S^2) + 6 M (H^2 + H V) + 6 B (H^2 + 2 H), where A = 3 H^2 counts a
    layer's matrices before attention and F = H^2 + 2 H I those after it, T the tokens, S the length of each sequence,
    M the masked tokens and B the paired sequences. After its attention the last layer computes only the R = M + B
    tokens that the heads read. Two encoders cost twice as much.

    Args:
        tokens, squared_tokens: sums of the lengths of the step's sequences, and of their squares.
        masked_tokens: tokens that the masked-LM head sees.
        paired_sequences: sequences that the pooler and the next-sentence head see; their share is below 0.1 %.
        reads_all_tokens: whether the last layer computes all tokens, as distillation's does: R = T.
    """
    hidden, layers = model.hidden_size, model.num_hidden_layers
    before_attention, after_attention = 3 * hidden * hidden, hidden * hidden + 2 * hidden * model.intermediate_size
    read_tokens = tokens if reads_all_tokens else masked_tokens + paired_sequences
    masked_head = hidden * hidden + hidden * vocab_size
    pair_head = hidden * hidden + 2 * hidden
    return model.num_encoders * (
        6.0 * ((layers - 1) * (before_attention + after_attention) + before_attention) * tokens
        + 6.0 * after_attention * read_tokens
        + 12.0 * layers * hidden * squared_tokens
        + 6.0 * masked_head * masked_tokens
        + 6.0 * pair_head * paired_sequences
    )


def predicted_tokens(model: ModelConfig, tokens: float, sequences: float, masked_tokens: float) -> float:
    """Tokens that the language model's head sees: masked ones or, left to right, all but the last of each sequence."""
    return tokens - sequences if model.predicts_next_tokens else masked_tokens


def num_parameters(model: ModelConfig, vocab_size: int, with_pairs: bool = True) -> int:
    """Parameters of training/bert/heads.py's BertForPreTraining, the tied decoder counted once."""
    hidden, wide = model.hidden_size, model.intermediate_size
    layer_norm = 2 * hidden
    square = hidden * hidden + hidden
    embeddings = (vocab_size + model.max_position_embeddings + model.type_vocab_size) * hidden + layer_norm
    layer = 4 * square + (hidden * wide + wide) + (wide * hidden + hidden) + 2 * layer_norm
    masked_head = square + layer_norm + vocab_size
    pooler_and_pair_head = square + 2 * hidden + 2 if with_pairs else 0
    return model.num_encoders * (embeddings + model.num_hidden_layers * layer + masked_head) + pooler_and_pair_head


class ModelStates(NamedTuple):
    """Bytes per rank that grow with the parameters; excludes activations, temporary buffers and the runtime."""

    weights: float
    gradients: float
    optimizer: float
    """Adam's moments, and master weights where there are any."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer


def model_states(parameters: int, precision: str, zero_stage: int, ranks: int) -> ModelStates:
    """Model states on one rank under ZeRO (Rajbhandari et al., 2020, section 3.1 and figure 1).

    Stage 1 partitions the optimizer's state over the ranks, 2 also the gradients, 3 also the weights. DeepSpeed's
    stages 1 to 3 keep master weights for fp32, too (stage_1_and_2.py, `single_partition_of_fp32_groups`).

    Args:
        precision: `fp32`, `bf16` or `fp16`.
    """
    width = SINGLE_BYTES if precision == "fp32" else HALF_BYTES
    has_master = precision != "fp32" or zero_stage > 0
    optimizer = SINGLE_BYTES * (_MOMENTS + has_master)
    return ModelStates(
        weights=parameters * width / (ranks if zero_stage >= 3 else 1),
        gradients=parameters * width / (ranks if zero_stage >= 2 else 1),
        optimizer=parameters * optimizer / (ranks if zero_stage >= 1 else 1),
    )


def checkpoint_bytes(parameters: int, precision: str, zero_stage: int) -> float:
    """Bytes of one checkpoint over all ranks: weights and the optimizer's state, no gradients."""
    states = model_states(parameters, precision, zero_stage, ranks=1)
    return states.weights + states.optimizer


def disk_bytes_checkpoints(pretraining: PretrainingConfig, parameters: int, num_steps: float) -> float:
    """Peak size of the checkpoints: a new one is complete before the oldest is removed; that before a decay stays."""
    num_checkpoints = pretraining.keep_checkpoints + 1 + (pretraining.decay_start_step is not None)
    if every := pretraining.keep_every_n_steps:
        num_checkpoints += int(num_steps) // every
    precision = "bf16" if pretraining.precision == "auto" else pretraining.precision
    return checkpoint_bytes(parameters, precision, pretraining.zero_stage) * num_checkpoints


def disk_bytes_model(parameters: int) -> float:
    """One exported model: its weights in fp32; settings and tokenizer are negligible."""
    return float(SINGLE_BYTES * parameters)


def disk_bytes_pretraining(pretraining: PretrainingConfig, parameters: int, num_steps: float) -> float:
    """Checkpoints and the encoder; `num_steps` may be an estimate, 0 if it depends on the machine."""
    return disk_bytes_checkpoints(pretraining, parameters, num_steps) + disk_bytes_model(parameters)


def disk_bytes_finetuning(parameters: int, trials: int) -> float:
    """The model of each trial; a trial is a task fine-tuned from one encoder."""
    return trials * disk_bytes_model(parameters)
