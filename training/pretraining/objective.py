"""Interface of an objective of the training loop, and the named sums that it accumulates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from pipelines.contract.manifest import Manifest, StageKey
from pipelines.contract.recipe import Recipe
from pipelines.results.verification import Verification
from pipelines.statistics.metrics import LOSS, Metric
from training.alarms.rules import Alarms
from training.bert.sizes import step_flops
from training.data.arrow_examples import LocalCopies
from training.data.batches import MicroBatch, StepBatch
from training.data.dynamic_masking import masking_of
from training.data.next_tokens import Targets
from training.engine.processes import Processes
from training.engine.training_engine import TrainingEngine
from training.resuming.progress import Progress
from training.settings.model import ModelConfig
from training.settings.pretraining import PhaseConfig, PretrainingConfig

Say = Callable[[str], None]
Forward = Callable[..., Any]
"""A model, or the engine that runs it."""
Gather = Callable[[], Mapping[str, torch.Tensor]]
"""Gathers weights in fp32, by name; all ranks call it."""


class Tally:
    """Named sums over rows, [names] float64: additive, and reduced over all ranks at once."""

    def __init__(self, names: tuple[str, ...], values: torch.Tensor) -> None:
        self.names, self._values = names, values

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        sums: Mapping[str, torch.Tensor | float] | None = None,
        device: torch.device | str = "cpu",
    ) -> Tally:
        """A tally of these sums; missing ones are 0."""
        values = torch.zeros(len(names), dtype=torch.float64, device=device)
        for name, value in (sums or {}).items():
            values[names.index(name)] = value.detach() if isinstance(value, torch.Tensor) else value
        return cls(names, values)

    def __add__(self, other: Tally) -> Tally:
        assert self.names == other.names, (self.names, other.names)
        return Tally(self.names, self._values + other._values)

    def __getitem__(self, name: str) -> float:
        return float(self._values[self.names.index(name)])

    def reduced(self, processes: Processes, *others: float | torch.Tensor) -> tuple[Tally, tuple[float, ...]]:
        """The sums over all ranks, on the CPU, and those of other numbers: one all-reduce, one wait for the device."""
        device = self._values.device
        # `full` passes its number with the kernel; torch.tensor would copy it and wait.
        own = [
            other.detach().double().view(1)
            if isinstance(other, torch.Tensor) and other.device == device
            else torch.full((1,), float(other), dtype=torch.float64, device=device)
            for other in others
        ]
        values = processes.sum(torch.cat([self._values, *own]))
        if device.type == "cuda":
            values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values)
        count = len(self.names)
        return Tally(self.names, values[:count]), tuple(values[count:].tolist())


class StageInputs(Protocol):
    """The loop's view of a stage's inputs; implemented in training/stages."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def workspace(self) -> str: ...
    @property
    def directory(self) -> str: ...
    @property
    def key(self) -> StageKey: ...
    @property
    def examples(self) -> Manifest: ...
    @property
    def examples_directory(self) -> str: ...
    @property
    def example_copies(self) -> LocalCopies | None: ...
    @property
    def tokenizer_directory(self) -> str:
        """Source of the tokenizer of examples and trained encoder."""
        ...


class Objective(Protocol):
    """What a run trains. The loop handles steps, evaluations, checkpoints and returns to them; the rest is here.

    inputs: of the stage. settings: of the loop. model, vocab_size, num_parameters: of the trained model. sums: names of
    every tally. metrics: returned by `means`, first the one that models are judged by.
    """

    inputs: StageInputs
    settings: PretrainingConfig
    model: ModelConfig
    vocab_size: int
    num_parameters: int
    sums: tuple[str, ...]
    metrics: tuple[Metric, ...]

    def check(self) -> None:
        """Check all inputs of the run but the shards; called on rank 0 before anything is written.

        Raises:
            InputError: something is missing, damaged, or does not fit.
        """
        ...

    def shard_verification(self) -> Verification:
        """The verification of the shards that the run reads, which all ranks share."""
        ...

    def build(self) -> nn.Module:
        """Build the model with its initial weights; called for each engine, with the same result."""
        ...

    def learn(self, engine: Forward, batch: MicroBatch, step: StepBatch) -> tuple[torch.Tensor, Tally]:
        """Compute a micro-batch's part of the step's loss, and its sums.

        The parts of all ranks and micro-batches add up to the loss of the global batch, so they are divided by the
        counts of `step`.
        """
        ...

    def measure(self, engine: Forward, batch: MicroBatch) -> Tally:
        """Compute the sums over held-out rows."""
        ...

    def means(self, tally: Tally) -> dict[str, float]:
        """The metrics that a tally has terms for; after `learn`, `loss` is one of them."""
        ...

    def export(self, directory: str, state: Mapping[str, torch.Tensor]) -> list[str]:
        """Write the finished encoder; returns the names of its files below the directory."""
        ...

    def statistics(self, directory: str, progress: Progress, after: Mapping[str, float], say: Say) -> dict[str, Any]:
        """Statistics for the manifest besides counts and metrics; called when the encoder has been written.

        Args:
            directory: of the written encoder.
            progress: at the end.
            after: held-out metrics of the finished model; empty without held-out rows.
            say: prints a line.
        """
        ...

    def alarms(self) -> Alarms:
        """The alarms for the progress lines."""
        return Alarms(LOSS)

    def introduction(self) -> str:
        """Lines to print when a run starts; empty for none."""
        return ""

    def tracked(self) -> Mapping[str, str]:
        """Parameters of the run for MLflow."""
        return {}

    def references(self) -> Mapping[str, Callable[[MicroBatch], Tally]]:
        """Models to compare with on held-out rows, by the name of their scores in the statistics."""
        return {}

    def watched(self, _model: nn.Module) -> Mapping[str, torch.Tensor]:
        """Parameters whose largest gradient is shown in each progress line, by name."""
        return {}

    def evaluate(self, _weights: Gather, _progress: Progress) -> dict[str, float]:
        """Held-out metrics that are no sums over held-out rows; called by all ranks.

        Args:
            _weights: gathers the trained weights in fp32.
            _progress: the steps so far.
        """
        return {}

    def conclude(self, engine: TrainingEngine) -> Mapping[str, torch.Tensor]:
        """The weights to export, [parameters] in fp32 on the CPU; called by all ranks after the last step.

        The engine computes with them afterwards, for the last evaluation.
        """
        return engine.full_precision_state()

    def targets(self, metadata: Mapping[str, str], tokens: Sequence[str], phase: PhaseConfig) -> Targets | None:
        """What rows predict, if that is chosen when they are read; None uses the masks as they were written.

        Args:
            metadata: of the examples' schema.
            tokens: the vocabulary, in order of ids.
            phase: whose rows they are.

        Raises:
            InputError: the settings contradict those of the examples.
        """
        settings = self.settings
        return masking_of(metadata, tokens, settings.masking, phase.masked_lm_prob, settings.mask_shares)

    def order_stream(self, phase: int) -> str:
        """Key of the order of a phase's samples, together with the seed."""
        return f"phase{phase}"

    def restored(self, progress: Progress) -> Progress:
        """Convert the progress of an earlier release's checkpoint."""
        return progress

    def flops(self, step: StepBatch) -> float:
        """Floating-point operations of a step, forward and backward."""
        tokens, masked_tokens = step.global_tokens, step.global_masked_tokens
        return step_flops(self.model, self.vocab_size, tokens, step.global_squared_tokens, masked_tokens)

    def in_words(self, metrics: Mapping[str, float]) -> str:
        """Metrics for a progress line: the loss, and those that are not losses."""
        shown = (LOSS, *(metric for metric in self.metrics if metric.unit != "nats"))
        return ", ".join(shown_metric(each, metrics[each.name]) for each in shown if each.name in metrics)


def shown_metric(metric: Metric, value: float) -> str:
    """A metric with its label, such as `MLM accuracy 0.1234`."""
    return f"{metric.label} {value:.1f}" if metric.unit == "number" else f"{metric.label} {value:.4f}"
