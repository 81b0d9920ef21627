"""Peak throughput of the device: the denominator of model FLOPs utilization (bert/sizes.py has the numerator)."""

from __future__ import annotations

import time

import torch

_PEAK_SECONDS = 0.25
_MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}


def measured_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the fastest of several large matrix products on this device; takes 0.25 s."""
    size = _MATRIX_SIZE.get(device.type, 1024)
    # A GPU lowers its clock for numbers that flip many bits: equal ones would give a peak that no training reaches.
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    result = torch.empty_like(left)
    deadline = time.perf_counter() + _PEAK_SECONDS
    _product_seconds(left, right, result)
    # Measure at least once, even if the first one was slow on a busy machine.
    shortest_seconds = _product_seconds(left, right, result)
    while time.perf_counter() < deadline:
        shortest_seconds = min(shortest_seconds, _product_seconds(left, right, result))
    return 2.0 * size**3 / shortest_seconds


def _product_seconds(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.mm(left, right, out=result)
    if left.device.type == "cuda":
        torch.cuda.synchronize(left.device)
    return time.perf_counter() - started
