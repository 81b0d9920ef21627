"""The progress line: averages between two lines, speed, utilisation, time left, and alarms in words."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from training.bert.flops import step_flops
from training.data.batches import StepBatch
from training.pretraining.alarms import Alarms
from training.pretraining.evaluation import accuracies_in_words, metrics_from_sums
from training.resuming.progress import Progress
from training.settings.model import ModelConfig
from training.tracking.tracker import Tracker


class LargestGradient:
    """Remembers the largest magnitude in a parameter's last gradient, before ranks add theirs up."""

    def __init__(self, parameter: torch.Tensor) -> None:
        self._largest: torch.Tensor | None = None
        parameter.register_hook(self._see)  # type: ignore[no-untyped-call]

    def _see(self, gradient: torch.Tensor) -> None:
        self._largest = gradient.detach().abs().amax()

    def value(self) -> float | None:
        """None before the first backward pass."""
        return None if self._largest is None else float(self._largest)


class Meter:
    """Averages between two progress lines."""

    def __init__(
        self,
        total_steps: int,
        every_steps: int,
        say: Callable[[str], None],
        tracker: Tracker,
        flops_of: FlopsOfSteps,
        alarms: Alarms,
        pooler: LargestGradient | None,
    ) -> None:
        """`pooler`: its gradient, None where nothing trains it."""
        self._total_steps, self._every_steps, self._say, self._tracker = total_steps, every_steps, say, tracker
        self._flops_of, self._alarms, self._pooler = flops_of, alarms, pooler
        self._start_line()
        self._clock = time.monotonic()

    def _start_line(self) -> None:
        self._sums = torch.zeros(6, dtype=torch.float64)
        self._tokens, self._seconds, self._steps, self._flops = 0, 0.0, 0, 0.0

    def restart_clock(self) -> None:
        """Leave out what was done between steps: evaluation, checkpoints."""
        self._clock = time.monotonic()

    def add(self, progress: Progress, sums: torch.Tensor, rate: float, norm: float, batch: StepBatch) -> None:
        """Count a step in; says a line where one is due.

        Args:
            progress: after the step.
            sums: [6] of training/pretraining/evaluation.py, over all ranks.
            rate, norm: learning rate and gradient norm of the step.
        """
        self._seconds += time.monotonic() - self._clock
        self._sums += sums
        self._tokens += batch.global_tokens
        self._flops += self._flops_of(batch)
        self._steps += 1
        if progress.step % self._every_steps and progress.step != self._total_steps:
            return
        metrics = metrics_from_sums(self._sums)
        seconds = max(self._seconds, 1e-9)
        left_seconds = (self._total_steps - progress.step) * self._seconds / self._steps
        metrics |= {
            "learning_rate": rate,
            "tokens": float(progress.tokens),
            "tokens_per_second": self._tokens / seconds,
            "model_flops_utilization": self._flops / seconds / self._flops_of.peak_flops,
        }
        if math.isfinite(norm):
            metrics["grad_norm"] = norm
        gradient = self._pooler.value() if self._pooler else None
        if gradient is not None:
            metrics["pooler_gradient"] = gradient
        self._say(
            f"step {progress.step}/{self._total_steps}: loss {metrics['loss']:.4f}, {accuracies_in_words(metrics)}, "
            f"{metrics['tokens_per_second']:,.0f} tokens/s, MFU {metrics['model_flops_utilization']:.0%}, "
            f"{left_seconds:.0f} s left"
        )
        self._tracker.log(progress.step, metrics)
        for alarm in self._alarms.observe(progress.step, metrics):
            self._say(f"ALARM at step {progress.step}: {alarm}")
        self._start_line()


class FlopsOfSteps:
    """Operations of a step of one model, and what all devices together reach at most."""

    def __init__(self, model: ModelConfig, vocab_size: int, peak_flops: float) -> None:
        """`peak_flops`: per second, measured (training/pretraining/throughput.py), over all ranks."""
        self._model, self._vocab_size, self.peak_flops = model, vocab_size, peak_flops

    def __call__(self, batch: StepBatch) -> float:
        return step_flops(
            self._model, self._vocab_size, batch.global_tokens, batch.global_squared_tokens, batch.global_masked_tokens
        )
