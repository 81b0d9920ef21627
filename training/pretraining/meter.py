"""The progress line: averages between two lines, speed, utilization, time left, and alarms."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from training.data.batches import StepBatch
from training.pretraining.objective import Objective, Say, Tally
from training.pretraining.run_state import RunState, StepResult
from training.resuming.progress import Progress
from training.stages.budgets import Budget
from training.tracking.tracker import Tracker


class Meter:
    """Averages between two progress lines, and their alarms."""

    def __init__(
        self,
        objective: Objective,
        state: RunState,
        tracker: Tracker,
        say: Say,
        budget: Budget,
        progress: Progress,
    ) -> None:
        self._objective, self._state, self._tracker, self._say = objective, state, tracker, say
        self._budget = budget
        self._alarms = objective.alarms()
        self._start_line(progress)
        self._clock = time.monotonic()

    def _start_line(self, progress: Progress) -> None:
        self._done = self._budget.done(progress)
        self._tally = Tally.of(self._objective.sums)
        self._tokens, self._seconds, self._steps, self._flops = 0, 0.0, 0, 0.0

    def restart_clock(self) -> None:
        """Exclude time spent between steps: evaluation, checkpoints."""
        self._clock = time.monotonic()

    def add(self, progress: Progress, result: StepResult, batch: StepBatch) -> None:
        """Add a step; prints a progress line if one is due.

        Args:
            progress: after the step.
            result: of the step.
            batch: of the step.
        """
        settings = self._objective.settings
        self._seconds += time.monotonic() - self._clock
        self._tally += result.tally
        self._tokens += batch.global_tokens
        self._flops += self._objective.flops(batch)
        self._steps += 1
        if progress.step % settings.log_every_steps and progress.phase < len(settings.phases):
            return
        means = self._objective.means(self._tally)
        seconds = max(self._seconds, 1e-9)
        done = self._budget.done(progress)
        left_seconds = max(0.0, self._budget.total - done) * self._seconds / max(done - self._done, 1e-9)
        metrics = {
            **means,
            "learning_rate": result.rate,
            "tokens": float(progress.tokens),
            "tokens_per_second": self._tokens / seconds,
            "model_flops_utilization": self._flops / seconds / self._state.peak_flops,
        }
        if math.isfinite(result.norm):
            metrics["grad_norm"] = result.norm
        gradients = {name: gradient.value() for name, gradient in self._state.gradients.items()}
        metrics |= {name: value for name, value in gradients.items() if value is not None}
        self._say(
            f"{self._budget.in_words(progress)}: {self._objective.in_words(means)}, "
            f"{metrics['tokens_per_second']:,.0f} tokens/s, MFU {metrics['model_flops_utilization']:.0%}, "
            f"{left_seconds:.0f} s left"
        )
        self._tracker.log(progress.step, metrics)
        self._warn(progress.step, self._alarms.observe(progress.step, metrics))
        self._start_line(progress)

    def add_heldout(self, step: int, metrics: Mapping[str, float]) -> None:
        """Check an evaluation during training; empty without held-out rows."""
        if metrics:
            self._warn(step, self._alarms.observe_heldout(metrics))

    def _warn(self, step: int, alarms: Sequence[str]) -> None:
        for alarm in alarms:
            self._say(f"ALARM at step {step}: {alarm}")
