"""Muon against PyTorch's own, a singular value decomposition, and AdamW for what is not a matrix of a layer."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from training.bert.heads import BertForPreTraining
from training.optimizers.building import build_optimizer
from training.optimizers.muon import Muon, orthogonalized
from training.settings.model import ModelConfig
from training.settings.pretraining import PretrainingConfig

MODEL = ModelConfig(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
STEPS = 6


def trained(optimizer_of: Any, names: set[str] | None = None) -> dict[str, torch.Tensor]:
    """Weights after some steps with the same gradients; `names` restricts the parameters passed to the optimizer."""
    torch.manual_seed(0)
    model = BertForPreTraining(MODEL, 31)
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        for name, parameter in model.named_parameters():
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient if names is None or name in names else None
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def ours(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> torch.optim.Optimizer:
    return build_optimizer(model, PretrainingConfig.model_validate({"zero_stage": 0, "optimizer": "muon"}), dtype)


def is_matrix_of_a_layer(name: str) -> bool:
    return name.startswith("bert.encoder.layer.") and name.endswith(".weight") and "LayerNorm" not in name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_of_layers_change_as_torch_muon_changes_them(dtype: torch.dtype) -> None:
    """PyTorch's has its iterations in bfloat16: 3 digits."""

    def torch_muon(model: torch.nn.Module) -> torch.optim.Optimizer:
        matrices = [parameter for name, parameter in model.named_parameters() if is_matrix_of_a_layer(name)]
        return torch.optim.Muon(
            matrices, lr=0.0, weight_decay=0.01, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
        )

    start = dict(BertForPreTraining(MODEL, 31).named_parameters())
    expected, own = trained(torch_muon), trained(partial(ours, dtype=dtype))
    names = [name for name in start if is_matrix_of_a_layer(name)]
    assert len(names) == 2 * 6
    for name in names:
        torch.testing.assert_close(own[name], expected[name], atol=2e-3, rtol=0.02, msg=name)


def test_everything_else_changes_as_adamw_changes_it() -> None:
    def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(model, PretrainingConfig.model_validate({"optimizer": "adamw"}))

    expected, own = trained(adamw), trained(ours)
    for name in own:
        if not is_matrix_of_a_layer(name):
            torch.testing.assert_close(own[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)
        else:
            assert (own[name] - expected[name]).abs().max() > 1e-3, name


@pytest.mark.parametrize("in_bf16", [False, True])
@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (40, 16)])
def test_singular_values_become_about_one_and_directions_stay(shape: tuple[int, int], in_bf16: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    matrices_KRC = torch.randn(3, *shape, generator=generator)
    left, values, right = torch.linalg.svd(orthogonalized(matrices_KRC, in_bf16), full_matrices=False)
    assert values.min() > 0.6
    assert values.max() < 1.3
    exact_left, _, exact_right = torch.linalg.svd(matrices_KRC, full_matrices=False)
    tolerance = 0.03 if in_bf16 else 1e-3
    aligned = exact_left.mT @ left @ torch.diag_embed(values) @ right @ exact_right.mT
    torch.testing.assert_close(aligned, torch.diag_embed(aligned.diagonal(dim1=1, dim2=2)), atol=tolerance, rtol=0.0)


def test_products_in_bf16_are_those_of_the_model() -> None:
    matrices_KRC = torch.randn(2, 16, 40, generator=torch.Generator().manual_seed(1))
    exact, rounded = (orthogonalized(matrices_KRC, in_bf16) for in_bf16 in (False, True))
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert not torch.equal(exact, exact.bfloat16().float())
    weights = [trained(partial(ours, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
    for name, exact in weights[0].items():
        assert torch.equal(exact, weights[1][name]) is not is_matrix_of_a_layer(name), name


def test_a_gradient_of_zeros_changes_only_by_decay() -> None:
    matrix = torch.nn.Parameter(torch.ones(4, 4))
    groups = [{"params": [matrix], "is_matrix": [True], "weight_decay": 0.1}]
    optimizer = Muon(groups, lr=0.5)
    matrix.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((4, 4), 0.95))


def test_matrices_are_found_by_place_after_a_wrapper_replaced_them() -> None:
    """DeepSpeed puts fp32 copies in place of 16-bit weights."""
    torch.manual_seed(0)
    model = BertForPreTraining(MODEL, 31)
    optimizer = ours(model)
    changed = []
    for group in optimizer.param_groups:
        group["params"] = [torch.nn.Parameter(parameter.detach().clone()) for parameter in group["params"]]
        group["lr"] = 1e-2
        changed.extend(group["params"])
    for parameter in changed:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert sum("exp_avg_sq" not in optimizer.state[parameter] for parameter in changed) == 2 * 6
