"""BertAdam and its schedule against optimization.py of the released code, written out number by number."""

from __future__ import annotations

import math

import pytest
import torch

from training.config import ModelConfig
from training.heads import BertForPreTraining
from training.optimizer import BertAdam, decay_groups
from training.schedule import learning_rate_at


@pytest.mark.parametrize("bias_correction", [False, True])
def test_update_equals_the_released_formulas(bias_correction: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = BertAdam([parameter], lr=1.0, weight_decay=0.01, bias_correction=bias_correction)
    values, first, second = start.flatten().tolist(), [0.0] * 12, [0.0] * 12
    for step in range(1, 8):
        gradient = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        rate = 0.1 / step
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = gradient.clone()
        optimizer.step()
        for index, g in enumerate(gradient.flatten().tolist()):
            first[index] = 0.9 * first[index] + 0.1 * g
            second[index] = 0.999 * second[index] + 0.001 * g * g
            m, v = first[index], second[index]
            if bias_correction:
                m, v = m / (1 - 0.9**step), v / (1 - 0.999**step)
            values[index] -= rate * (m / (math.sqrt(v) + 1e-6) + 0.01 * values[index])
        assert parameter.flatten().tolist() == pytest.approx(values, rel=1e-9, abs=1e-12)


def test_bias_correction_makes_it_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    adam = BertAdam([ours], lr=0.01, eps=1e-8, weight_decay=0.1, bias_correction=True)
    reference = torch.optim.AdamW([theirs], lr=0.01, eps=1e-8, weight_decay=0.1)
    for _ in range(10):
        gradient = torch.randn(5, dtype=torch.float64)
        ours.grad, theirs.grad = gradient, gradient.clone()
        adam.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_layer_norm_and_biases_do_not_decay_and_the_pooler_is_trained() -> None:
    model = BertForPreTraining(ModelConfig(hidden_size=12, intermediate_size=8, num_hidden_layers=1), 9)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = (
        {names[id(parameter)] for parameter in group["params"]} for group in decay_groups(model, weight_decay=0.01)
    )
    assert all("LayerNorm" in name or name.endswith("bias") for name in plain)
    assert not any("LayerNorm" in name or name.endswith("bias") for name in decayed)
    assert decayed | plain == set(names.values())
    assert "bert.pooler.dense.weight" in decayed
    assert "bert.pooler.dense.bias" in plain


def test_schedule_decays_from_step_zero() -> None:
    def rate(step: int) -> float:
        return learning_rate_at(step, 1e-4, num_warmup_steps=10, num_train_steps=1000)

    assert rate(0) == 0.0
    assert rate(5) == pytest.approx(5e-5)
    # The rate drops by a hundredth where warm-up ends: the decay has counted from step 0.
    assert rate(10) == pytest.approx(1e-4 * 0.99)
    assert rate(500) == pytest.approx(5e-5)
    assert rate(1000) == rate(2000) == 0.0
    assert learning_rate_at(0, 1e-4, 0, 10) == 1e-4
