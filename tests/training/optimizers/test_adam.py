"""The optimizers, each against its source's formulas written out number by number."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from training.bert.heads import BertForPreTraining
from training.optimizers.adam import BertAdam, Lamb
from training.optimizers.building import build_optimizer, decay_groups
from training.settings.finetuning import FinetuningConfig
from training.settings.model import ModelConfig
from training.settings.pretraining import PretrainingConfig


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


@pytest.mark.parametrize("bias_correction", [False, True])
def test_lamb_equals_algorithm_2(bias_correction: bool) -> None:
    """You et al., 2020: matrices are scaled by |p| / |r|, vectors are not, and a zero matrix takes Adam's step."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 4), (2, 5), (4,), (2, 2)]
    starts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    starts[3].zero_()
    parameters = [torch.nn.Parameter(start.clone()) for start in starts]
    groups = [
        {"params": [parameters[0], parameters[1], parameters[3]], "weight_decay": 0.01},
        {"params": [parameters[2]], "weight_decay": 0.0},
    ]
    optimizer = Lamb(groups, lr=1.0, bias_correction=bias_correction)
    values = [start.flatten().tolist() for start in starts]
    first, second = ([[0.0] * len(value) for value in values] for _ in range(2))
    for step in range(1, 6):
        rate = 0.1 / step
        for group in optimizer.param_groups:
            group["lr"] = rate
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.randn(shapes[index], generator=generator, dtype=torch.float64)
            update = []
            for place, g in enumerate(parameter.grad.flatten().tolist()):
                first[index][place] = 0.9 * first[index][place] + 0.1 * g
                second[index][place] = 0.999 * second[index][place] + 0.001 * g * g
                m, v = first[index][place], second[index][place]
                if bias_correction:
                    m, v = m / (1 - 0.9**step), v / (1 - 0.999**step)
                decay = 0.0 if len(shapes[index]) == 1 else 0.01
                update.append(m / (math.sqrt(v) + 1e-6) + decay * values[index][place])
            weight_norm, update_norm = math.hypot(*values[index]), math.hypot(*update)
            ratio = weight_norm / update_norm if len(shapes[index]) > 1 and weight_norm and update_norm else 1.0
            values[index] = [value - rate * ratio * r for value, r in zip(values[index], update, strict=True)]
        optimizer.step()
        for parameter, value in zip(parameters, values, strict=True):
            assert parameter.flatten().tolist() == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_a_recipe_names_its_optimizer_and_fused_adamw_equals_ours() -> None:
    """AdamW out of PyTorch, fused, against BERT's Adam with bias correction, on the groups of a model."""
    states = []
    for settings in ({"optimizer": "adamw"}, {"optimizer": "adam", "adam_bias_correction": True}):
        config = PretrainingConfig.model_validate(settings)
        torch.manual_seed(0)
        model = BertForPreTraining(ModelConfig(hidden_size=12, intermediate_size=8, num_hidden_layers=1), 9)
        optimizer = build_optimizer(model, config)
        assert isinstance(optimizer, torch.optim.AdamW if config.optimizer == "adamw" else BertAdam)
        for step in range(5):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (step + 1)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        states.append(model.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-5, atol=1e-6, msg=name)


def test_bias_correction_is_as_the_source_has_it_unless_said_otherwise() -> None:
    def corrected(**settings: object) -> bool:
        return PretrainingConfig.model_validate({"zero_stage": 0, **settings}).adam_bias_correction

    assert [corrected(optimizer=name) for name in ("adam", "adamw", "lamb", "muon")] == [False, True, True, True]
    assert corrected(adam_bias_correction=True)
    assert not corrected(optimizer="lamb", adam_bias_correction=False)
    with pytest.raises(ValidationError, match="'adamw' is Adam with bias correction"):
        corrected(optimizer="adamw", adam_bias_correction=False)


@pytest.mark.parametrize("name", ["lamb", "muon"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_reads_matrices_is_refused_where_they_are_cut(name: str, stage: int) -> None:
    with pytest.raises(ValidationError, match=rf"'{name}' with zero_stage = {stage}: {name} needs each matrix to"):
        PretrainingConfig.model_validate({"optimizer": name, "zero_stage": stage})
    with pytest.raises(ValidationError, match="fine-tune with 'adam' or 'adamw'"):
        FinetuningConfig.model_validate({"optimizer": name})
