"""Which device a rank takes, and what is refused instead of a silent run on the CPU; there is no GPU here."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flows.launching import single_node
from pipelines.commands import gpus
from pipelines.commands.cores import available_cores
from pipelines.contract.errors import InputError
from training.engine.devices import chosen_device, device_of_one_process, use_flash_kernels
from training.kernels.packed_attention import flash_attention_applies
from training.pretraining import throughput

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these are about machines whose GPU torch cannot use")


@pytest.fixture(autouse=True)
def threads_and_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    for name in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gpu_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files as NVIDIA's driver makes them; its control device is no GPU."""
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gpus, "_DEVICES", str(tmp_path / "nvidia[0-9]*"))
    return [str(tmp_path / "nvidia0"), str(tmp_path / "nvidia1")]


def test_without_a_gpu_it_is_the_cpu() -> None:
    assert gpus.visible_gpus() == []
    assert chosen_device(0) == torch.device("cpu")
    assert torch.get_num_threads() == available_cores()


FAULTS = """
import resource, sys, torch
from training.engine.devices import chosen_device
if sys.argv[1] == "kept":
    chosen_device(0)
def step():
    torch.ones(40_000_000).add(1)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str, **variables: str) -> int:
    """Of five steps with 320 MB of tensors each, after three others."""
    hidden = ("THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | variables
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS, how], env=environment, capture_output=True, text=True, check=True
    )
    return int(ended.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_step_takes_the_memory_of_the_one_before() -> None:
    pages = 5 * 320_000_000 // os.sysconf("SC_PAGE_SIZE")
    assert page_faults("default") > pages // 2
    assert page_faults("kept") < pages // 100
    # What a user has set for the allocator stays.
    assert page_faults("kept", MALLOC_ARENA_MAX="2", THP_MEM_ALLOC_ENABLE="0") > pages // 2


def test_a_gpu_that_torch_cannot_use_is_an_error(gpu_files: list[str]) -> None:
    assert gpus.visible_gpus() == gpu_files
    with pytest.raises(InputError, match=r"nvidia0, .*nvidia1: torch .* cannot use this GPU \(.+\); update") as raised:
        chosen_device(0)
    with pytest.raises(InputError, match="cannot use this GPU"):
        device_of_one_process()
    assert "DS_ACCELERATOR=cpu uses the CPU" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("DS_ACCELERATOR", "cpu"), ("CUDA_VISIBLE_DEVICES", ""), ("CUDA_VISIBLE_DEVICES", "-1")],
)
@pytest.mark.usefixtures("gpu_files")
def test_the_cpu_may_be_asked_for(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert chosen_device(0) == torch.device("cpu")
    assert single_node.environment() == single_node.ONE_RANK | {"DS_ACCELERATOR": "cpu"}


@pytest.mark.usefixtures("gpu_files")
def test_a_flow_leaves_the_refusal_to_the_ranks() -> None:
    assert single_node.environment() == single_node.ONE_RANK


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_SIZE", str(2 * available_cores()))
    chosen_device(0)
    assert torch.get_num_threads() == 1


def test_attention_keeps_away_from_cudnn() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        use_flash_kernels()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize(("head_size", "applies"), [(64, True), (256, True), (26, False), (264, False)])
def test_the_variable_length_kernel_takes_some_sizes_of_heads(
    head_size: int, applies: bool, caplog: pytest.LogCaptureFixture
) -> None:
    flash_attention_applies.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert flash_attention_applies("cuda", torch.bfloat16, head_size) is applies
    assert ("heads of a multiple of 8 up to 256" in caplog.text) is not applies


def test_the_peak_is_measured_on_numbers_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    operands: list[torch.Tensor] = []

    def product_seconds(left: torch.Tensor, right: torch.Tensor, _result: torch.Tensor) -> float:
        operands.extend([left, right])
        return 1.0

    monkeypatch.setattr(throughput, "_product_seconds", product_seconds)
    monkeypatch.setattr(throughput, "_PEAK_SECONDS", 0.0)
    assert throughput.measured_peak_flops(torch.device("cpu"), torch.float32) == 2.0 * 1024**3
    assert all(operand.unique().numel() > 1_000 for operand in operands)
