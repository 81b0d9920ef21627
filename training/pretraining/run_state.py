"""State of a part of a run: the engine until the next return to a checkpoint, and the result of one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from training.engine.training_engine import TrainingEngine
from training.pretraining.objective import Tally


class LargestGradient:
    """Records the largest magnitude in a parameter's last gradient, before the sum over ranks."""

    def __init__(self, parameter: torch.Tensor) -> None:
        self._largest: torch.Tensor | None = None
        parameter.register_hook(self._see)  # type: ignore[no-untyped-call]

    def _see(self, gradient: torch.Tensor) -> None:
        self._largest = gradient.detach().abs().amax()

    def value(self) -> float | None:
        """None before the first backward pass."""
        return None if self._largest is None else float(self._largest)


@dataclass(frozen=True)
class RunState:
    """State from one start, or return to a checkpoint, until the next.

    gradients: watched gradients, by name in the progress line. peak_flops: per second, measured
    (training/pretraining/throughput.py), over all ranks.
    """

    engine: TrainingEngine
    gradients: Mapping[str, LargestGradient]
    peak_flops: float


class StepResult(NamedTuple):
    """Result of one optimizer step: sums over all ranks, learning rate, gradient norm, and whether to stop."""

    tally: Tally
    rate: float
    norm: float
    stop: bool
