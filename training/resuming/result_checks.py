"""Checks of a trained model before its stage counts as complete.

A run can end without an error but with NaN in the model; such a model is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pipelines.contract.errors import InputError


def result_fault(state: Mapping[str, torch.Tensor], metrics: Mapping[str, float]) -> str | None:
    """The first metric or weight that is not finite, in words; None if all are finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            return f"{name} is {value}"
    for name, tensor in state.items():
        # Test the sum first: if it is not finite, it may have overflowed, so then test the elements.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            return f"{count:,} of {tensor.numel():,} weights of {name} are not finite"
    return None


def unusable(where: str, fault: str) -> str:
    """The error line for a fault found by `result_fault`."""
    return (
        f"{where}: the trained model is unusable: {fault}; it is not kept; lower learning_rate, keep max_grad_norm "
        "above 0, or warm up for longer, and train again"
    )


def require_finite(state: Mapping[str, torch.Tensor], metrics: Mapping[str, float], where: str) -> None:
    """Refuse a model that is not finite; must be called before its stage is complete.

    Args:
        state: the weights to be exported, by name.
        metrics: held-out or development scores; empty where nothing was held out.
        where: start of the error line, such as the recipe's path.

    Raises:
        InputError: a metric or a weight is NaN or infinite.
    """
    if fault := result_fault(state, metrics):
        raise InputError(unusable(where, fault))
