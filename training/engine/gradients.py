"""Gradients of 16-bit weights added up in fp32, and measured with fewer kernels and fewer waits for the GPU.

DeepSpeed launches 15 kernels per parameter and step to look for values that are not finite and to measure the norm, and
waits for the GPU in between. The norm alone shows both: it is not finite if a gradient is not, and the step is then
skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
import torch.distributed
from torch import nn


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
        optimizer.step = MethodType(_step_of_copies, optimizer)


def forget_gradients(optimizer: Any) -> None:
    """Clear what ZeRO-2 with offload has added up for a step that was skipped.

    DeepSpeed 0.19.8 leaves it in place, and a sum that is not finite would forbid all further steps.
    """
    if getattr(optimizer, "cpu_offload", False):
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = None


class MicroBatchSums:
    """The sums of a step's micro-batches in fp32, for 16-bit weights without ZeRO and with ZeRO-1.

    There DeepSpeed leaves the addition to autograd, which rounds the sum to the type of the weights after each
    micro-batch: what is smaller than 1/256 of a bfloat16 sum is lost. ZeRO-2 and -3 can add in fp32 themselves; for
    ZeRO-1 DeepSpeed would take another optimizer wrapper (`BF16_Optimizer`), with other checkpoints.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._sums: dict[nn.Parameter, torch.Tensor] = {}

    @torch.no_grad()
    def take(self) -> None:
        """Move the gradients of a micro-batch into the sums."""
        for parameter in self._parameters:
            if parameter.grad is None:
                continue
            if parameter in self._sums:
                self._sums[parameter].add_(parameter.grad)
            else:
                self._sums[parameter] = parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def give(self) -> None:
        """Make the sums the gradients, rounded once, to which the step's last micro-batch is added."""
        for parameter, total in self._sums.items():
            parameter.grad = total.to(parameter.dtype)
        self._sums.clear()


@torch.no_grad()
def _step_of_copies(optimizer: Any, closure: None = None) -> bool:
    """`FP16_UnfusedOptimizer.step`: whether the update was skipped, as a gradient is not finite.

    DeepSpeed measures further copies of the gradients, and multiplies them even by 1.
    """
    assert closure is None
    rounded = [weight for group in optimizer.fp16_groups for weight in group]
    masters = [master for group in optimizer.fp32_groups for master in group]
    for weight, master in zip(rounded, masters, strict=True):
        master.grad = torch.zeros_like(master) if weight.grad is None else weight.grad.to(master.dtype)
    gradients = [master.grad for master in masters]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if not math.isfinite(norm):
        return bool(optimizer._skip_invalid_grad_norm())
    optimizer.overflow, optimizer._global_grad_norm = False, norm
    optimizer._update_scale(False)
    divisor = optimizer.unscale_and_clip_grads(norm, apply_scale=False)
    if divisor != 1.0:
        torch._foreach_mul_(gradients, 1.0 / divisor)
    optimizer.optimizer.step()
    for master in masters:
        master.grad = None
    torch._foreach_copy_(rounded, masters)
    return False


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
