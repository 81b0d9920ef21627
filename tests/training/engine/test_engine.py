"""The settings passed to DeepSpeed, and the precision chosen for a device; without loading DeepSpeed itself."""

from __future__ import annotations

import pytest
import torch

from pipelines.contract.errors import InputError
from training.engine.precision import TORCH_TYPES, resolved_precision
from training.engine.training_engine import EngineSettings


def generated(zero_stage: int = 2, precision: str = "fp32", offload_optimizer: bool = False) -> dict[str, object]:
    return EngineSettings(zero_stage, precision, 1.0, 8, 4, offload_optimizer).deepspeed_json()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_stage_and_sizes_are_passed_on(stage: int) -> None:
    settings = generated(zero_stage=stage)
    assert settings["zero_optimization"] == {"stage": stage, "overlap_comm": False}
    assert (settings["train_micro_batch_size_per_gpu"], settings["gradient_accumulation_steps"]) == (8, 4)
    # DeepSpeed clips at 1.0 where nothing is said, so no clipping has to be said.
    assert settings["gradient_clipping"] == (1.0 if stage else 0.0)
    assert EngineSettings(2, "fp32", 0.0, 8, 4).deepspeed_json()["gradient_clipping"] == 0.0
    # Without ZeRO our own step clips fp32 gradients, and DeepSpeed must not do so again.
    clipping = {precision: generated(0, precision)["gradient_clipping"] for precision in TORCH_TYPES}
    assert clipping == {"fp32": 0.0, "bf16": 1.0, "fp16": 1.0}


def test_fp16_has_a_dynamic_loss_scale() -> None:
    assert generated(precision="fp16")["fp16"] == {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
    for precision in TORCH_TYPES:
        settings = generated(precision=precision)
        enabled = {name: settings[name]["enabled"] for name in ("bf16", "fp16")}  # type: ignore[index]
        assert enabled == {"bf16": precision == "bf16", "fp16": precision == "fp16"}


def test_an_offloaded_optimizer_stays_ours() -> None:
    settings = generated(offload_optimizer=True)
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "cpu"  # type: ignore[index]
    assert settings["zero_force_ds_cpu_optimizer"] is False


def test_precision_is_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert [resolved_precision("auto", device) for device in (cpu, gpu)] == ["fp32", "bf16"]
    assert (resolved_precision("bf16", cpu), resolved_precision("fp16", gpu)) == ("bf16", "fp16")
    with pytest.raises(InputError, match="precision = 'fp16' needs a GPU"):
        resolved_precision("fp16", cpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert resolved_precision("auto", gpu) == "fp32"
    with pytest.raises(InputError, match="this GPU has no bfloat16; use 'fp32' or 'fp16'"):
        resolved_precision("bf16", gpu)
