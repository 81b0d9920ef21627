"""What a trained model has to be before its stage counts as complete.

A run can end without an error and with a model of NaN; such a model is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pipelines.contract.errors import InputError


def result_fault(state: Mapping[str, torch.Tensor], metrics: Mapping[str, float]) -> str | None:
    """What of a model is not finite: a metric, or a weight; None where all is."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            return f"{name} is {value}"
    for name, tensor in state.items():
        # The sum of a tensor is finite only if all of it is, or if it overflows; then the elements decide.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            return f"{count:,} of {tensor.numel():,} weights of {name} are not finite"
    return None


def unusable(where: str, fault: str) -> str:
    """The line that refuses a model for what `result_fault` found."""
    return (
        f"{where}: the trained model is of no use: {fault}; it is not kept; lower learning_rate, keep max_grad_norm "
        "above 0, or warm up for longer, and train again"
    )


def require_finite(state: Mapping[str, torch.Tensor], metrics: Mapping[str, float], where: str) -> None:
    """Refuse a model that is not finite; to be called before its stage is complete.

    Args:
        state: the weights to be exported, by name.
        metrics: held-out or development scores; empty where nothing was held out.
        where: what the line begins with, such as the recipe's path.

    Raises:
        InputError: a metric or a weight is NaN or infinite.
    """
    if fault := result_fault(state, metrics):
        raise InputError(unusable(where, fault))
