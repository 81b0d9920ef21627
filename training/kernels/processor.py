"""What this processor multiplies in bf16."""

from __future__ import annotations

from functools import cache

import torch


@cache
def has_amx() -> bool:
    """Whether the processor has AMX's tiles."""
    return bool(torch.cpu._is_amx_tile_supported())


@cache
def has_bf16_products() -> bool:
    """Whether the processor has instructions for products in bf16: AMX or AVX512-BF16."""
    return has_amx() or bool(torch.cpu._is_avx512_bf16_supported())
