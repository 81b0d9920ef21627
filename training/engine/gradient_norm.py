"""DeepSpeed's own measurement of the gradients, with fewer kernels and without waiting for the GPU.

DeepSpeed launches 15 kernels per parameter and step to look for values that are not finite and to measure the norm, and
waits for the GPU in between. The norm alone shows both: it is not finite if a gradient is not, and DeepSpeed then skips
the step (`is_invalid_grad_norm` in its `step`).
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
import torch.distributed


def measure_gradients_once(optimizer: Any) -> None:
    """Replace these measurements of DeepSpeed's wrapper around an optimizer, where it has them.

    With offload, ZeRO-1 and -2 measure while gradients are copied to the CPU; that is not replaced, nor is ZeRO-3.
    """
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        if optimizer.cpu_offload:
            return
        optimizer.check_overflow = _skip
        optimizer.get_grad_norm_direct = MethodType(_partition_norm, optimizer)
    elif isinstance(optimizer, FP16_UnfusedOptimizer):
        optimizer.overflow_checker.check = _skip


def _skip(*_: Any, **__: Any) -> bool:
    return False


def _partition_norm(
    optimizer: Any, gradients: Iterable[torch.Tensor], params: Iterable[torch.Tensor], norm_type: float = 2
) -> torch.Tensor:
    """The norm of a group's gradients over all ranks' partitions, or -1 if it is not finite, as DeepSpeed has it."""
    assert norm_type == 2
    # The tensor behind the last parameter is padding; it has no parameter.
    own = [gradient.detach() for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
    own = [gradient for gradient, _ in zip(own, params, strict=False)]
    if own:
        squared = torch.stack(torch._foreach_norm(own, 2, dtype=torch.float32)).square().sum()
    else:
        squared = torch.zeros((), dtype=torch.float32, device=optimizer.device)
    torch.distributed.all_reduce(squared, group=optimizer.dp_process_group)
    norm = squared.sqrt()
    return torch.where(norm.isfinite(), norm, -1.0)
