"""Number formats, and the seed of dropout."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.distributed

from pipelines.contract.errors import InputError
from training.engine.processes import Processes
from training.kernels.processor import has_bf16_products
from training.settings.optimization import PRECISION, Precision

SMALLEST_HIDDEN_SIZE = 256
"""Narrower models spend their time around the products; none has been measured in bf16."""
SMALLEST_GAIN = 1.5
"""Of products in bf16 over fp32 on a CPU. One with AVX512-BF16 makes them 2.0 to 2.8 times as fast and a training step
1.7 to 1.8 times (without dropout), another one 0.6 times; one with AMX 3.4 to 5.1 times, a step 1.9 to 2.4 times."""
_PROBE_SECONDS = 0.05
_PROBE_ROWS = 256
_FEWEST_ROUNDS = 6

TORCH_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Data type of weights and activations, by resolved precision."""


def resolved_precision(precision: Precision, device: torch.device) -> str:
    """`fp32`, `bf16` or `fp16`; `auto` is bf16 on a GPU that has it.

    Raises:
        InputError: bf16 is requested on a GPU without it, or fp16 on a CPU.
    """
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "auto":
        return "bf16" if has_bf16 else "fp32"
    if precision == "bf16" and device.type == "cuda" and not has_bf16:
        raise InputError("precision = 'bf16': this GPU has no bfloat16; use 'fp32' or 'fp16'")
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision = 'fp16' needs a GPU: a CPU has no fast float16; use 'fp32' or 'bf16'")
    return precision


def pretraining_precision(
    precision: Precision, processes: Processes, hidden_size: int, checkpoint: Mapping[str, Any] | None
) -> str:
    """As `resolved_precision`, but `auto` may be bf16 on a CPU; the same on all ranks, which must all call it.

    Args:
        precision: of the recipe.
        processes: the ranks of the run.
        hidden_size: of the encoder.
        checkpoint: statistics of the checkpoint that is resumed, whose files are of one precision; earlier releases did
            not state it, and `auto` was fp32 on a CPU.

    Raises:
        InputError: as `resolved_precision`.
    """
    device = processes.device
    if precision == "auto" and checkpoint is not None:
        precision = checkpoint.get(PRECISION, "fp32" if device.type == "cpu" else "auto")
    if precision == "auto" and device.type == "cpu" and hidden_size >= SMALLEST_HIDDEN_SIZE:
        pays = processes.count(bf16_gain(hidden_size) >= SMALLEST_GAIN) == processes.world_size
        return "bf16" if pays else "fp32"
    return resolved_precision(precision, device)


def precision_in_words(setting: Precision, resolved: str, processes: Processes, hidden_size: int) -> str:
    """`bf16`, and on a CPU why `auto` is it: this processor, or that on which the run began."""
    if setting != "auto" or resolved != "bf16" or processes.device.type != "cpu":
        return resolved
    if (gain := bf16_gain(hidden_size)) < SMALLEST_GAIN:
        return "bf16 (that of the checkpoint)"
    return f"bf16 (its products are {gain:.1f} times as fast as in fp32 on this CPU)"


@cache
def bf16_gain(hidden_size: int) -> float:
    """How many times as fast as in fp32 this CPU makes a layer's product in bf16; measured once, for 50 ms.

    It is 0 without instructions for it, where one product in bf16 may take longer than that.
    """
    if not has_bf16_products():
        return 0.0
    types = (torch.float32, torch.bfloat16)
    operands = [
        (torch.ones(_PROBE_ROWS, hidden_size, dtype=dtype), torch.ones(hidden_size, 4 * hidden_size, dtype=dtype))
        for dtype in types
    ]
    shortest_seconds = [float("inf")] * len(types)
    deadline = time.perf_counter() + _PROBE_SECONDS
    rounds, num_threads = 0, torch.get_num_threads()
    # One thread and its own time, in turn: other work on the machine then changes neither much. The first round, which
    # chooses kernels, is never the shortest.
    torch.set_num_threads(1)
    while rounds < _FEWEST_ROUNDS or time.perf_counter() < deadline:
        for number, (left, right) in enumerate(operands):
            started = time.thread_time()
            torch.mm(left, right)
            shortest_seconds[number] = min(shortest_seconds[number], time.thread_time() - started)
        rounds += 1
    torch.set_num_threads(num_threads)
    return shortest_seconds[0] / shortest_seconds[1]


def seed_dropout(seed: int) -> None:
    """Seed the generators of the CPU and this rank's GPU; called before each micro-batch, so no state is saved."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)
