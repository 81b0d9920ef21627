"""The table of optimizers, and which parameters decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from training.optimizers.adam import BertAdam, Lamb
from training.optimizers.muon import Muon
from training.settings.optimization import OPTIMIZERS, OptimizerConfig

NO_DECAY = ("LayerNorm.weight", "bias")
"""Name suffixes of parameters without weight decay (exclude_from_weight_decay in the released code)."""


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of trainable parameters: matrices with weight decay, LayerNorm scales and all biases without."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if name.endswith(NO_DECAY) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, dtype: torch.dtype = torch.float32
) -> torch.optim.Optimizer:
    """Build the recipe's optimizer; its rate is 0 until the schedule sets it before each step.

    Args:
        model: its parameters are optimized.
        config: the recipe's settings.
        dtype: of the model's computations in the engine.
    """
    return _BUILDERS[config.optimizer](model, config, dtype)


# The rate is 0 because DeepSpeed may call step() during initialization.
def _bert_adam(model: nn.Module, config: OptimizerConfig, _dtype: torch.dtype) -> torch.optim.Optimizer:
    return BertAdam(
        decay_groups(model, config.weight_decay), bias_correction=config.adam_bias_correction, **_rates(config)
    )


def _fused_adamw(model: nn.Module, config: OptimizerConfig, _dtype: torch.dtype) -> torch.optim.Optimizer:
    # The fused form is one kernel over all parameters, on both CUDA and CPU.
    return torch.optim.AdamW(decay_groups(model, config.weight_decay), fused=True, **_rates(config))


def _lamb(model: nn.Module, config: OptimizerConfig, _dtype: torch.dtype) -> torch.optim.Optimizer:
    groups = decay_groups(model, config.weight_decay)
    return Lamb(groups, bias_correction=config.adam_bias_correction, **_rates(config))


def _muon(model: nn.Module, config: OptimizerConfig, dtype: torch.dtype) -> torch.optim.Optimizer:
    groups = decay_groups(model, config.weight_decay)
    matrices = {parameter for name, parameter in model.named_parameters() if ".layer." in name and parameter.ndim == 2}
    for group in groups:
        group["is_matrix"] = [parameter in matrices for parameter in group["params"]]
    in_bf16 = dtype == torch.bfloat16
    return Muon(groups, in_bf16=in_bf16, bias_correction=config.adam_bias_correction, **_rates(config))


def _rates(config: OptimizerConfig) -> dict[str, Any]:
    return {"lr": 0.0, "betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_eps}


_BUILDERS: dict[str, Callable[[nn.Module, OptimizerConfig, torch.dtype], torch.optim.Optimizer]] = {
    "adam": _bert_adam,
    "adamw": _fused_adamw,
    "lamb": _lamb,
    "muon": _muon,
}
assert _BUILDERS.keys() == OPTIMIZERS.keys()
