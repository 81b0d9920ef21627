"""Number formats, and the seed of dropout."""

from __future__ import annotations

import torch
import torch.distributed

from pipelines.contract.errors import InputError
from training.settings.optimization import Precision


def resolved_precision(precision: Precision, device: torch.device) -> str:
    """`fp32`, `bf16` or `fp16`.

    Raises:
        InputError: bf16 is requested on a GPU without it, or fp16 on a CPU.
    """
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "auto":
        return "bf16" if has_bf16 else "fp32"
    if precision == "bf16" and device.type == "cuda" and not has_bf16:
        raise InputError("precision = 'bf16': this GPU has no bfloat16; use 'fp32' or 'fp16'")
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision = 'fp16' needs a GPU: a CPU has no fast float16; use 'fp32' or 'bf16'")
    return precision


TORCH_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Data type of weights and activations, by resolved precision."""


def seed_dropout(seed: int) -> None:
    """Seed the generators of the CPU and this rank's GPU; called before each micro-batch, so no state is saved."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)
