"""How far a run has come, in the measure of its phases: steps, epochs, tokens or hours. Must not import torch.

Everything is derived from what a checkpoint stores, which is equal on all ranks and does not depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest
from pipelines.statistics.preprocessing import ExamplesStatistics
from training.settings.pretraining import Measure, PhaseConfig, PretrainingConfig

SECONDS_PER_HOUR = 3600.0
_NOUNS: dict[Measure, str] = {"steps": "steps", "epochs": "epochs", "tokens": "tokens", "hours": "hours"}


class Amounts(Protocol):
    """The fields of `Progress` that a budget reads."""

    @property
    def step(self) -> int: ...
    @property
    def phase(self) -> int: ...
    @property
    def phase_step(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True)
class Budget:
    """The length of each phase in the measure of the run.

    A phase ends with the first step that reaches its amount: by epochs with the sample at which that many readings of
    its rows are complete, by tokens and hours when the run has had those of all phases so far.

    num_rows: training rows of each phase, for epochs; empty for other measures.
    """

    measure: Measure
    amounts: tuple[float, ...]
    num_rows: tuple[int, ...] = ()

    @staticmethod
    def of(config: PretrainingConfig, num_rows: Sequence[int] = ()) -> Budget:
        """The budget of a section."""
        assert config.measure != "epochs" or len(num_rows) == len(config.phases)
        return Budget(config.measure, tuple(phase.amount for phase in config.phases), tuple(num_rows))

    @property
    def total(self) -> float:
        """The amount of all phases together."""
        return sum(self.amounts)

    def done(self, progress: Amounts) -> float:
        """The amount trained so far; the schedule's position."""
        if self.measure == "steps":
            return progress.step
        if self.measure == "tokens":
            return progress.tokens
        if self.measure == "hours":
            return progress.seconds / SECONDS_PER_HOUR
        before = sum(self.amounts[: progress.phase])
        is_over = progress.phase == len(self.amounts)
        return before if is_over else before + progress.position / self.num_rows[progress.phase]

    def ends_phase(self, progress: Amounts) -> bool:
        """Whether the step that led to this progress was the last one of its phase."""
        amount = self.amounts[progress.phase]
        if self.measure == "steps":
            return progress.phase_step == amount
        if self.measure == "epochs":
            return progress.position >= rows_of_epochs(amount, self.num_rows[progress.phase])
        return self.done(progress) >= sum(self.amounts[: progress.phase + 1])

    def in_words(self, progress: Amounts) -> str:
        """`step 40/1000`, or `step 40 (12.5 % of 2 epochs)`."""
        if self.measure == "steps":
            return f"step {progress.step}/{self.total}"
        share = 100.0 * min(1.0, self.done(progress) / self.total)
        return f"step {progress.step} ({share:.1f} % of {amount_in_words(self.total, self.measure)})"


def amount_in_words(amount: float, measure: Measure) -> str:
    """`2.5 epochs`, `1,000,000 tokens`."""
    shown = f"{amount:,.0f}" if float(amount).is_integer() else f"{amount:,g}"
    return f"{shown} {_NOUNS[measure]}"


def rows_of_epochs(epochs: float, num_rows: int) -> int:
    """Rows in this many readings of all rows, rounded up; 0.1 epochs of 30 rows are exactly 3."""
    return math.ceil(Fraction(str(epochs)) * num_rows)


def steps_of_sequences(phase: PhaseConfig, sequences: float, mean_length: float) -> float:
    """Steps in which a phase reads this many sequences; a step is as long as its batch is full.

    Args:
        phase: of pre-training.
        sequences: to read.
        mean_length: tokens of a row, for batches by tokens.
    """
    if phase.global_batch_tokens is not None:
        return sequences * mean_length / phase.global_batch_tokens
    steps = 0
    if phase.batch_warmup is not None:
        while steps < phase.batch_warmup.steps and sequences > 0:
            sequences -= phase.batch_size_at(steps)
            steps += 1
    return steps + max(0.0, sequences) / phase.global_batch_size


def sequences_of_steps(phase: PhaseConfig, steps: int, mean_length: float) -> float:
    """Sequences that a phase reads in its first steps; arguments as for `steps_of_sequences`."""
    if phase.global_batch_tokens is not None:
        return steps * phase.global_batch_tokens / mean_length
    warm = min(steps, phase.batch_warmup.steps if phase.batch_warmup is not None else 0)
    return float(sum(map(phase.batch_size_at, range(warm))) + (steps - warm) * phase.global_batch_size)


def sequences_of(phase: PhaseConfig, num_rows: float, mean_length: float) -> float | None:
    """About the number of sequences that a phase reads; None if that depends on the machine.

    Args:
        phase: of pre-training.
        num_rows: training rows of its length.
        mean_length: tokens of a row.
    """
    if phase.steps is not None:
        return sequences_of_steps(phase, phase.steps, mean_length)
    if phase.epochs is not None:
        return phase.epochs * num_rows
    return None if phase.tokens is None else phase.tokens / mean_length


def about_steps(config: PretrainingConfig, examples: Manifest | None) -> list[int] | None:
    """About the number of steps of each phase; None if that depends on the machine, or the data is not known.

    Exact for phases by steps, and by epochs of a fixed number of sequences.

    Args:
        config: of the run.
        examples: their manifest; None if they are not built.
    """
    found = []
    for phase in config.phases:
        if phase.steps is not None:
            found.append(phase.steps)
            continue
        mean_length = _mean_length(examples, phase)
        if examples is None or mean_length is None:
            return None
        files = examples.files_of("train", phase.examples_directory)
        sequences = sequences_of(phase, sum(file.rows for file in files), mean_length)
        if sequences is None:
            return None
        found.append(math.ceil(steps_of_sequences(phase, sequences, mean_length)))
    return found


def _mean_length(examples: Manifest | None, phase: PhaseConfig) -> float | None:
    """Mean tokens of a row that a phase reads, from the examples' manifest."""
    if examples is None:
        return None
    try:
        statistics = examples.statistics_as(ExamplesStatistics).of_length(phase.max_seq_length, phase.examples)
    except InputError:
        return None  # an earlier release wrote it
    return None if statistics is None else statistics.mean_length
