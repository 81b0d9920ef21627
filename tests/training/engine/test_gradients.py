"""Sums of micro-batches in fp32 for 16-bit weights, and steps that one rank's gradients forbid."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
from tests.support.training.engine_steps import EXACT
from tests.support.training.finetune_ranks import outputs_of_ranks

from training.engine.gradients import measure_gradients_once
from training.engine.training_engine import EngineSettings
from training.optimizers.adam import BertAdam

pytestmark = pytest.mark.timeout(300)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero_stage", "more"), [("0", []), ("1", []), ("2", []), ("3", []), *((stage, ["offload"]) for stage in "123")]
)
def test_micro_batches_add_up_in_fp32_and_no_rank_takes_a_poisoned_step(zero_stage: str, more: list[str]) -> None:
    command = [sys.executable, "-m", "tests.support.training.engine_steps", zero_stage, *more]
    for output in outputs_of_ranks(command, ranks=2):
        found = json.loads(output.splitlines()[-1])
        # The sum in bfloat16 is 1.0.
        assert found["norms"] == pytest.approx([EXACT, EXACT], rel=1e-3)
        assert found["skipped"] == {"was_updated": False, "is_finite": False, "is_changed": False}


@pytest.mark.parametrize(
    ("zero_stage", "precision", "num_micro", "dtype"),
    [(1, "bf16", 4, None), (2, "bf16", 4, "fp32"), (3, "fp16", 2, "fp32"), (2, "bf16", 1, None), (2, "fp32", 4, None)],
)
def test_only_what_is_rounded_needs_sums(zero_stage: int, precision: str, num_micro: int, dtype: str | None) -> None:
    settings = EngineSettings(zero_stage, precision, 1.0, 8, num_micro)
    assert settings.deepspeed_json()["data_types"] == {"grad_accum_dtype": dtype}


@pytest.mark.usefixtures("one_thread", "single_process")
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_without_zero_are_updated_as_deepspeed_does(dtype: torch.dtype, max_grad_norm: float) -> None:
    """Against DeepSpeed's own step: clipping, the loss scale of fp16, steps without a gradient and not finite ones."""
    logs = [list(steps_of(dtype, max_grad_norm, is_ours)) for is_ours in (False, True)]
    assert [entry["skipped"] for entry in logs[0]].count(True) == 3
    for theirs, ours in zip(*logs, strict=True):
        norms = (theirs.pop("norm"), ours.pop("norm"))
        if not theirs["skipped"]:
            assert norms[1] == pytest.approx(norms[0], rel=1e-3)
        weights = (theirs.pop("weights"), ours.pop("weights"))
        assert ours == theirs
        for one, other in zip(*weights, strict=True):
            torch.testing.assert_close(one, other, rtol=4e-3, atol=1e-3)


def steps_of(dtype: torch.dtype, max_grad_norm: float, is_ours: bool) -> Any:
    """What each of twelve steps did."""
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    generator = torch.Generator().manual_seed(1)
    shapes = ((5, 7), (3,), (2, 2), (4,))
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    adam = BertAdam([{"params": weights[:2]}, {"params": weights[2:], "weight_decay": 0.0}], lr=0.01)
    scale = {"init_scale": 2**8, "scale_window": 3, "delayed_shift": 1, "min_scale": 1}
    wrapper = FP16_UnfusedOptimizer(
        adam,
        dynamic_loss_scale=dtype == torch.float16,
        dynamic_loss_args=scale if dtype == torch.float16 else None,
        clip_grad=max_grad_norm,
        verbose=False,
        low_precision_dtype=dtype,
    )
    if is_ours:
        measure_gradients_once(wrapper)
        assert "step" in vars(wrapper)
    values = {3: float("nan"), 6: float("inf"), 8: float("-inf")}
    for step in range(12):
        for number, weight in enumerate(weights):
            gradient = (torch.randn(weight.shape, generator=generator) * wrapper.loss_scale_config.cur_scale).to(dtype)
            if number == 1 and step in values:
                gradient[0] = values[step]
            weight.grad = None if number == 3 and step % 2 else gradient
        yield {
            "skipped": bool(wrapper.step()),
            "norm": float(wrapper._global_grad_norm),
            "scale": float(wrapper.loss_scale_config.cur_scale),
            "overflow": bool(wrapper.overflow),
            "weights": [weight.detach().float().clone() for weight in weights],
            "copies with gradients": sum(copy.grad is not None for group in wrapper.fp32_groups for copy in group),
            "Adam's steps": float(adam.state[adam.param_groups[0]["params"][0]]["step"]),
        }
        wrapper.zero_grad()
