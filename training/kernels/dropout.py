"""Dropout whose random numbers cost less than a product on a CPU.

PyTorch's random number for an element takes ten times as long there as the multiplication by it. A quarter of a 64-bit
number is enough: 16 bits give any probability within 1 / 131,072, and the
factor of what is kept is that of the probability in fact used, so means are exact.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_LEVELS = 1 << 16


def keep_factors(like: torch.Tensor, p: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """A tensor of the same shape and type on the CPU: 0 with probability p, else 1 / (1 - p)."""
    dropped = round(p * _LEVELS)
    if dropped == _LEVELS:
        return torch.zeros_like(like)
    count = like.numel()
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    is_kept = numbers.view(torch.int16)[:count] >= dropped - _LEVELS // 2
    return is_kept.to(like.dtype).mul_(_LEVELS / (_LEVELS - dropped)).view(like.shape)


class Dropout(nn.Module):
    """As `nn.Dropout`; with other random numbers on a CPU."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p:
            return hidden
        if hidden.device.type != "cpu" or torch.compiler.is_compiling():
            return functional.dropout(hidden, self.p)
        return hidden * keep_factors(hidden, self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
