"""Cost of a run, by arithmetic alone: rows, bytes, CPU hours, operations, GPU hours, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from flows.inspection.rates import (
    CPU_FLOPS_PER_SECOND,
    CPU_START_SECONDS,
    CPU_STEP_SECONDS,
    MERGES_SECONDS,
    START_SECONDS,
    Rates,
)
from flows.parameters.whole_recipe import WholeRecipe
from pipelines.contract.schemas import UNMASKED
from pipelines.contract.workspace import (
    DOCUMENTS,
    EXAMPLES,
    FINETUNING,
    PRETRAINING,
    VOCABULARY,
    directory_label,
)
from pipelines.jobs.sizes import (
    MEGABYTE,
    disk_bytes_documents,
    disk_bytes_examples,
    disk_bytes_length,
    disk_bytes_vocabulary,
    masked_per_row,
)
from pipelines.settings.examples import ExamplesPart
from training.bert.sizes import (
    ModelStates,
    disk_bytes_checkpoints,
    disk_bytes_finetuning,
    disk_bytes_model,
    disk_bytes_pretraining,
    model_states,
    num_parameters,
    predicted_tokens,
    step_flops,
)
from training.settings.pretraining import PhaseConfig
from training.stages.budgets import amount_in_words, sequences_of, steps_of_sequences


class Gpu(NamedTuple):
    """Peak of a GPU for dense 16-bit matrix products, in TFLOP/s, from NVIDIA's data sheet."""

    name: str
    tflops: float
    note: str = "bf16"


GPUS: Mapping[str, Gpu] = {
    "v100": Gpu("V100 SXM2", 125.0, "fp16; it has no bf16"),
    "t4": Gpu("T4", 65.0, "fp16; it has no bf16"),
    "a10": Gpu("A10", 125.0),
    "l4": Gpu("L4", 121.0),
    "a100": Gpu("A100 SXM", 312.0),
    "l40s": Gpu("L40S", 362.0),
    "h100-pcie": Gpu("H100 PCIe", 756.0),
    "h100": Gpu("H100 SXM", 989.0),
    "h200": Gpu("H200 SXM", 989.0),
    "b200": Gpu("B200 SXM", 2250.0),
}
"""Data sheets often state twice as much, with 2:4 sparsity, which dense training does not use."""

REGISTRY = "mlartifacts"
MANY_TEXT_EPOCHS = 100
"""BERT read its text about 40 times (paper, appendix A.2)."""
MANY_ROW_EPOCHS = 10
SMALL_USED_SHARE = 0.5


@dataclass(frozen=True)
class LengthCost:
    """The examples of one maximum length of a set; `directory` names both."""

    directory: str
    max_seq_length: int
    train_rows: float
    rows: float
    tokens: float
    size_bytes: float

    @property
    def label(self) -> str:
        """The length, after the name of its set: `128`, `NAME/128`."""
        return directory_label(self.directory)


@dataclass(frozen=True)
class PhaseCost:
    """One phase of pre-training; `row_epochs`: how often it reads each row that was written.

    A phase by hours has zeros: what it reads depends on the device.
    """

    max_seq_length: int
    steps: int
    sequences: float
    tokens: float
    masked_tokens: float
    flops: float
    row_epochs: float


@dataclass(frozen=True)
class Estimate:
    """Everything that `flows.estimate` shows; seconds are of one core unless the basis of the rates says otherwise.

    Attributes:
        disk_bytes: by stage, and of the copies of models in the registry.
    """

    text_bytes: float
    documents_seconds: float
    documents_bytes: float
    vocabulary_seconds: float
    examples_seconds: float
    examples_bytes: float
    lengths: tuple[LengthCost, ...]
    phases: tuple[PhaseCost, ...]
    parameters: int
    text_epochs: float
    checkpoints_bytes: float
    disk_bytes: Mapping[str, float]
    memory: Mapping[int, ModelStates]
    warnings: tuple[str, ...]

    @property
    def tokens(self) -> float:
        return sum(phase.tokens for phase in self.phases)

    @property
    def flops(self) -> float:
        return sum(phase.flops for phase in self.phases)

    @property
    def cpu_seconds(self) -> float:
        return self.documents_seconds + self.vocabulary_seconds + self.examples_seconds

    def cores_seconds(self, cores: int) -> float:
        """Seconds of pre-training on this number of CPU cores."""
        steps = sum(phase.steps for phase in self.phases)
        return CPU_START_SECONDS + steps * CPU_STEP_SECONDS + self.flops / (cores * CPU_FLOPS_PER_SECOND)

    def gpu_seconds(self, peak_tflops: float, utilization: float) -> float:
        """Seconds on one GPU; n GPUs at equal utilization take 1/n of it."""
        return self.flops / (peak_tflops * 1e12 * utilization)


def estimate(whole: WholeRecipe, rates: Rates, text_bytes: float, ranks: int) -> Estimate:
    """Estimate the cost for a corpus of `text_bytes` bytes of plain text."""
    megabytes = text_bytes / MEGABYTE
    lengths = tuple(_length_cost(whole, rates, part, megabytes) for part in whole.examples.parts())
    by_length = {cost.directory: cost for cost in lengths}
    phases = tuple(_phase_cost(whole, rates, phase, by_length) for phase in whole.pretraining.phases)
    parameters = num_parameters(whole.model, whole.vocabulary.size, whole.examples.next_sentence)
    precision = "bf16" if whole.pretraining.precision == "auto" else whole.pretraining.precision
    examples_bytes = disk_bytes_examples(whole.examples, whole.vocabulary.size, text_bytes, rates.shapes)
    models, num_steps = 1 + len(whole.finetuning.tasks), sum(phase.steps for phase in phases)
    disk_bytes = {
        DOCUMENTS: disk_bytes_documents(text_bytes),
        VOCABULARY: disk_bytes_vocabulary(whole.vocabulary.size),
        EXAMPLES: examples_bytes,
        PRETRAINING: disk_bytes_pretraining(whole.pretraining, parameters, num_steps),
        FINETUNING: disk_bytes_finetuning(
            parameters, len(whole.finetuning.tasks) * (1 + whole.finetuning.compare_with_random)
        ),
        REGISTRY: models * disk_bytes_model(parameters),
    }
    text_epochs = sum(
        cost.row_epochs * whole.examples.of_set(phase.examples).passes
        for cost, phase in zip(phases, whole.pretraining.phases, strict=True)
    )
    return Estimate(
        text_bytes=text_bytes,
        documents_seconds=START_SECONDS + megabytes * rates.documents_seconds_per_megabyte,
        documents_bytes=disk_bytes[DOCUMENTS],
        vocabulary_seconds=START_SECONDS + MERGES_SECONDS + megabytes * rates.vocabulary_seconds_per_megabyte,
        examples_seconds=START_SECONDS
        + sum(cost.tokens for cost in lengths) / 1e6 * rates.examples_seconds_per_million_tokens,
        examples_bytes=examples_bytes,
        lengths=lengths,
        phases=phases,
        parameters=parameters,
        text_epochs=text_epochs,
        checkpoints_bytes=disk_bytes_checkpoints(whole.pretraining, parameters, num_steps),
        disk_bytes=disk_bytes,
        memory={stage: model_states(parameters, precision, stage, ranks) for stage in range(4)},
        warnings=tuple(_warnings(whole, phases, text_epochs)),
    )


def _length_cost(whole: WholeRecipe, rates: Rates, part: ExamplesPart, megabytes: float) -> LengthCost:
    max_seq_length = part.length.max_seq_length
    shape = rates.shapes[max_seq_length]
    # Weights keep the number of tokens; a set of some sources counts as if it read all.
    rows = megabytes * shape.rows_per_megabyte * part.config.passes
    size_bytes = disk_bytes_length(part.config, max_seq_length, whole.vocabulary.size, megabytes * MEGABYTE, shape)
    return LengthCost(
        part.directory,
        max_seq_length,
        train_rows=rows * (1.0 - whole.documents.heldout_share),
        rows=rows,
        tokens=rows * shape.mean_length,
        size_bytes=size_bytes,
    )


def _phase_cost(whole: WholeRecipe, rates: Rates, phase: PhaseConfig, lengths: Mapping[str, LengthCost]) -> PhaseCost:
    shape, rows = rates.shapes[phase.max_seq_length], lengths[phase.examples_directory].train_rows
    sequences = sequences_of(phase, rows, shape.mean_length) or 0.0
    steps = math.ceil(steps_of_sequences(phase, sequences, shape.mean_length)) if phase.steps is None else phase.steps
    tokens = sequences * shape.mean_length
    masked = sequences * masked_per_row(whole.examples.of_set(phase.examples), phase.max_seq_length, shape.mean_length)
    if phase.masked_lm_prob is not None:
        masked = tokens * phase.masked_lm_prob
    masked = predicted_tokens(whole.model, tokens, sequences, masked)
    pairs = sequences if whole.examples.next_sentence else 0.0
    squared = sequences * shape.mean_squared_length
    flops = step_flops(whole.model, whole.vocabulary.size, tokens, squared, masked, pairs)
    return PhaseCost(
        phase.max_seq_length,
        steps,
        sequences,
        tokens,
        masked,
        flops,
        row_epochs=sequences / rows if rows else 0.0,
    )


def _warnings(whole: WholeRecipe, phases: tuple[PhaseCost, ...], text_epochs: float) -> list[str]:
    warnings = []
    if text_epochs > MANY_TEXT_EPOCHS:
        warnings.append(
            f"the run reads its text about {text_epochs:,.0f} times (BERT: 40); use more text or fewer steps"
        )
    for setting, phase in zip(whole.pretraining.phases, phases, strict=True):
        is_unmasked = whole.examples.of_set(setting.examples).masking in UNMASKED
        is_static = not is_unmasked and whole.pretraining.masking == "as_written"
        if is_static and phase.row_epochs > MANY_ROW_EPOCHS:
            warnings.append(
                f"length {phase.max_seq_length}: each row is read {phase.row_epochs:,.0f} times with the same masks "
                "(BERT: 4); raise examples.passes, or set examples.masking = 'dynamic'"
            )
    if whole.pretraining.measure == "hours":
        amount = amount_in_words(sum(phase.amount for phase in whole.pretraining.phases), "hours")
        return [
            f"pretraining.phases are by hours, {amount}: steps, tokens and operations depend on the device and are "
            "not counted here"
        ]
    for part in whole.examples.parts():
        of_phases = zip(whole.pretraining.phases, phases, strict=True)
        epochs = sum(phase.row_epochs for setting, phase in of_phases if setting.examples_directory == part.directory)
        if epochs < SMALL_USED_SHARE:
            warnings.append(
                f"length {directory_label(part.directory)}: training reads {epochs:.0%} of the rows; lower "
                "examples.passes, or train longer"
            )
    return warnings
