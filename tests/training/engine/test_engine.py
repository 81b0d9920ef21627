"""The settings passed to DeepSpeed, and the precision chosen for a device; without loading DeepSpeed itself."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from pipelines.contract.errors import InputError
from training.engine import precision
from training.engine.precision import TORCH_TYPES, precision_in_words, pretraining_precision, resolved_precision
from training.engine.processes import Processes
from training.engine.training_engine import EngineSettings


def generated(zero_stage: int = 2, number_format: str = "fp32", offload_optimizer: bool = False) -> dict[str, object]:
    return EngineSettings(zero_stage, number_format, 1.0, 8, 4, offload_optimizer).deepspeed_json()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_stage_and_sizes_are_passed_on(stage: int) -> None:
    settings = generated(zero_stage=stage)
    assert settings["zero_optimization"] == {"stage": stage, "overlap_comm": False}
    assert (settings["train_micro_batch_size_per_gpu"], settings["gradient_accumulation_steps"]) == (8, 4)
    # DeepSpeed clips at 1.0 where nothing is said, so no clipping has to be said.
    assert settings["gradient_clipping"] == (1.0 if stage else 0.0)
    assert EngineSettings(2, "fp32", 0.0, 8, 4).deepspeed_json()["gradient_clipping"] == 0.0
    # Without ZeRO our own step clips fp32 gradients, and DeepSpeed must not do so again.
    clipping = {name: generated(0, name)["gradient_clipping"] for name in TORCH_TYPES}
    assert clipping == {"fp32": 0.0, "bf16": 1.0, "fp16": 1.0}


def test_fp16_has_a_dynamic_loss_scale() -> None:
    assert generated(number_format="fp16")["fp16"] == {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
    for number_format in TORCH_TYPES:
        settings = generated(number_format=number_format)
        enabled = {name: settings[name]["enabled"] for name in ("bf16", "fp16")}  # type: ignore[index]
        assert enabled == {"bf16": number_format == "bf16", "fp16": number_format == "fp16"}


def test_an_offloaded_optimizer_stays_ours() -> None:
    settings = generated(offload_optimizer=True)
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "cpu"  # type: ignore[index]
    assert settings["zero_force_ds_cpu_optimizer"] is False


CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ON_CPU, ON_GPU = Processes(0, 1, CPU), Processes(0, 1, GPU)


def test_precision_is_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert [resolved_precision("auto", device) for device in (CPU, GPU)] == ["fp32", "bf16"]
    assert (resolved_precision("bf16", CPU), resolved_precision("fp16", GPU)) == ("bf16", "fp16")
    with pytest.raises(InputError, match="precision = 'fp16' needs a GPU"):
        resolved_precision("fp16", CPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert resolved_precision("auto", GPU) == "fp32"
    with pytest.raises(InputError, match="this GPU has no bfloat16; use 'fp32' or 'fp16'"):
        resolved_precision("bf16", GPU)


@pytest.mark.parametrize(
    ("gain", "hidden_size", "chosen"),
    [(12.0, 256, "bf16"), (1.5, 256, "bf16"), (1.4, 768, "fp32"), (0.6, 768, "fp32"), (12.0, 128, "fp32")],
)
def test_auto_is_bf16_on_a_cpu_only_where_that_pays(
    gain: float, hidden_size: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bf16_gain", lambda _: gain)
    assert pretraining_precision("auto", ON_CPU, hidden_size, None) == chosen
    words = {"bf16": f"bf16 (its products are {gain:.1f} times as fast as in fp32 on this CPU)", "fp32": "fp32"}
    assert precision_in_words("auto", chosen, ON_CPU, hidden_size) == words[chosen]
    assert pretraining_precision("fp32", ON_CPU, hidden_size, None) == "fp32"
    assert precision_in_words("bf16", "bf16", ON_CPU, hidden_size) == "bf16"


@dataclass(frozen=True)
class Disagreeing(Processes):
    """Two ranks, of which the other has the opposite processor."""

    def count(self, value: bool) -> int:
        return int(value) + int(not value)


def test_ranks_take_bf16_only_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_gain", lambda _: 12.0)
    assert pretraining_precision("auto", Disagreeing(0, 2, CPU), 768, None) == "fp32"


def test_a_checkpoint_keeps_its_precision_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(_hidden_size: int) -> float:
        raise AssertionError("the checkpoint decides")

    monkeypatch.setattr(precision, "bf16_gain", unwanted)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    for processes in (ON_CPU, ON_GPU):
        assert pretraining_precision("auto", processes, 768, {"precision": "fp32"}) == "fp32"
        assert pretraining_precision("auto", processes, 768, {"precision": "bf16"}) == "bf16"
    assert pretraining_precision("auto", ON_CPU, 768, {}) == "fp32", "that of earlier releases"
    assert pretraining_precision("auto", ON_GPU, 768, {}) == "bf16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(InputError, match="this GPU has no bfloat16"):
        pretraining_precision("auto", ON_GPU, 768, {"precision": "bf16"})


def test_the_probe_measures_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    before, num_threads = torch.get_rng_state(), torch.get_num_threads()
    for there_are in (False, True):
        monkeypatch.setattr(precision, "has_bf16_products", lambda there_are=there_are: there_are)
        precision.bf16_gain.cache_clear()
        gain = precision.bf16_gain(256)
        assert 0.0 < gain < 100.0 if there_are else gain == 0.0
        assert precision.bf16_gain.cache_info().currsize == 1
        assert torch.get_num_threads() == num_threads
    precision.bf16_gain.cache_clear()
    assert torch.equal(torch.get_rng_state(), before), "the order of random numbers would depend on the setting"
