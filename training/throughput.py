"""How much arithmetic a step is, and what the device can do at most: model FLOPs utilisation.

Counted as PaLM (Chowdhery et al., 2022, appendix B) and Megatron-LM count it, forward and backward together, for the
tokens that exist: padding and recomputation add nothing.
"""

from __future__ import annotations

import time

import torch

from training.config import ModelConfig

_PEAK_SECONDS = 0.25
_MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}


def step_flops(model: ModelConfig, vocab_size: int, tokens: int, squared_tokens: int, masked_tokens: int) -> float:
    """Floating-point operations of one training step, forward and backward.

    6 N T + 12 L H sum(S^2) + 6 M (H^2 + H V), where N counts the encoder's matrices (4 H^2 + 2 H I a layer), T the
    tokens, S the length of each sequence and M the masked tokens.

    Args:
        tokens, squared_tokens: sums of the lengths of the step's sequences, and of their squares.
        masked_tokens: tokens that the masked-LM head sees.
    """
    hidden, layers = model.hidden_size, model.num_hidden_layers
    encoder = layers * (4 * hidden * hidden + 2 * hidden * model.intermediate_size)
    head = hidden * hidden + hidden * vocab_size
    return 6.0 * encoder * tokens + 12.0 * layers * hidden * squared_tokens + 6.0 * masked_tokens * head


def measured_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the best of several large matrix products on this device, which take 0.25 s together."""
    size = _MATRIX_SIZE.get(device.type, 1024)
    left = torch.ones(size, size, device=device, dtype=dtype)
    right, result = torch.ones_like(left), torch.empty_like(left)
    shortest_seconds, deadline = float("inf"), time.perf_counter() + _PEAK_SECONDS
    _product_seconds(left, right, result)
    while time.perf_counter() < deadline:
        shortest_seconds = min(shortest_seconds, _product_seconds(left, right, result))
    return 2.0 * size**3 / shortest_seconds


def _product_seconds(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.mm(left, right, out=result)
    if left.device.type == "cuda":
        torch.cuda.synchronize(left.device)
    return time.perf_counter() - started
