"""Recipe section `[pretraining]`; light to import, without torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipelines.contract.bounds import Bounded, Count, CountOrNone, MaskedShare, SequenceLength, Text, UserPath
from pipelines.contract.bounds import Processes as Ranks
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import ADDED, OPERATIONAL, Section
from pipelines.contract.workspace import length_directory
from training.settings.model import ModelConfig
from training.settings.optimization import OPTIMIZERS, BatchSize, LearningRate, LoopConfig, ScheduleKind

WSD_DECAY_SHARE = 0.1
"""Share of the steps in which warm-up-stable-decay decays the rate (Hu et al., 2024, section 4.3)."""

_STEP_TOKENS = "gradients of this many tokens are summed in one step"


class PhaseConfig(Section):
    """`[[pretraining.phases]]`: one phase of pre-training at one maximum length."""

    max_seq_length: SequenceLength
    steps: Count
    global_batch_size: BatchSize = 256
    """Sequences per optimizer step, over all ranks and micro-batches."""
    global_batch_tokens: Annotated[int, Bounded(1, 1 << 34, _STEP_TOKENS)] | None = None
    """Fill each step with sequences up to this many tokens in total, instead of global_batch_size."""
    examples: Text | None = Field(default=None, json_schema_extra=ADDED)
    """The set of examples to read, one of `examples.sets`; None reads that of `[examples]` itself."""
    masked_lm_prob: MaskedShare | None = Field(default=None, json_schema_extra=ADDED)
    """Share of the tokens to predict where training draws the masks; None takes that of the examples.

    The examples' max_predictions_per_seq does not limit this one.
    """

    @model_validator(mode="after")
    def _one_batch_size(self) -> PhaseConfig:
        if self.global_batch_tokens is None:
            return self
        # Manifests record every setting, so reject a value only if it differs from the default.
        if self.global_batch_size != type(self).model_fields["global_batch_size"].default:
            raise ValueError(
                f"global_batch_size = {self.global_batch_size} and global_batch_tokens = {self.global_batch_tokens}: "
                "a step is filled by sequences or by tokens; remove one"
            )
        if self.global_batch_tokens < self.max_seq_length:
            raise ValueError(
                f"global_batch_tokens = {self.global_batch_tokens} has no room for a sequence of max_seq_length = "
                f"{self.max_seq_length}; raise it"
            )
        return self

    @property
    def examples_directory(self) -> str:
        """Of the files that the phase reads, below the stage of the examples."""
        return length_directory(self.max_seq_length, self.examples)

    @property
    def full_sequences(self) -> int:
        """Sequences of a step if all have the maximum length."""
        return (
            self.global_batch_size
            if self.global_batch_tokens is None
            else self.global_batch_tokens // self.max_seq_length
        )


class PretrainingConfig(LoopConfig):
    """`[pretraining]`: objective, optimizer and schedule; the defaults are those of the paper, appendix A.2."""

    phases: tuple[PhaseConfig, ...] = (
        PhaseConfig(max_seq_length=128, steps=900_000, global_batch_size=256),
        PhaseConfig(max_seq_length=512, steps=100_000, global_batch_size=256),
    )
    learning_rate: LearningRate = 1e-4
    num_warmup_steps: CountOrNone = 10_000
    schedule: ScheduleKind = "linear"
    """The decay after warm-up, one over all phases; formulas in training/engine/schedule.py."""
    num_decay_steps: Count | None = None
    """Number of final steps in which `warmup_stable_decay` decays the rate to 0; None is a tenth of all steps."""
    zero_stage: Annotated[int, Bounded(0, 3, "ZeRO has the stages 1, 2 and 3; 0 disables it")] = 2
    offload_optimizer: bool = False
    """Keep and update master weights and moments in host memory (ZeRO-Offload)."""

    # A path, not a setting: the encoder's files enter the stage key by their digest.
    initial_encoder: UserPath | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Continue from this encoder instead of random weights: a Hugging Face directory, a workspace, `models:/...`.

    `[model]` is then read from the encoder; only dropout and longer max_position_embeddings may be set there.
    """
    ranks: Ranks = Field(default=0, json_schema_extra=OPERATIONAL)
    """Processes of one node; 0 means one per GPU, or two without GPUs."""

    @model_validator(mode="after")
    def _phases_fit(self) -> PretrainingConfig:
        if not self.phases:
            raise ValueError("phases is empty; give at least one phase with max_seq_length and steps")
        if self.num_warmup_steps >= self.num_train_steps:
            raise ValueError(
                f"num_warmup_steps = {self.num_warmup_steps} is not below the {self.num_train_steps} steps of all "
                "phases; lower it, or train longer"
            )
        return self

    @model_validator(mode="after")
    def _settings_go_together(self) -> PretrainingConfig:
        if self.zero_stage and not OPTIMIZERS[self.optimizer].works_under_zero:
            raise ValueError(
                f"optimizer = {self.optimizer!r} with zero_stage = {self.zero_stage}: {self.optimizer.upper()} scales "
                "each matrix's change by that matrix's norm, and ZeRO 1-3 cut all matrices into flat pieces; set "
                "zero_stage = 0, or use 'adamw'"
            )
        if self.offload_optimizer and not self.zero_stage:
            raise ValueError(
                "offload_optimizer = true with zero_stage = 0: only ZeRO moves the optimizer's state; set zero_stage "
                "to 1, 2 or 3, or turn offload_optimizer off"
            )
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile = true with zero_stage = 3: ZeRO-3 gathers weights by hooks inside the compiled part; "
                "set zero_stage to 0, 1 or 2, or turn compile off"
            )
        return self

    @model_validator(mode="after")
    def _decay_fits(self) -> PretrainingConfig:
        if self.num_decay_steps is None:
            return self
        if self.schedule != "warmup_stable_decay":
            raise ValueError(
                f"num_decay_steps = {self.num_decay_steps} with schedule = {self.schedule!r}, which decays in all "
                "steps; remove it, or use schedule = 'warmup_stable_decay'"
            )
        if self.num_warmup_steps + self.num_decay_steps > self.num_train_steps:
            raise ValueError(
                f"num_warmup_steps = {self.num_warmup_steps} and num_decay_steps = {self.num_decay_steps} exceed the "
                f"{self.num_train_steps} steps of all phases; lower one"
            )
        return self

    @property
    def num_train_steps(self) -> int:
        """Optimizer steps of all phases together."""
        return sum(phase.steps for phase in self.phases)

    @property
    def decay_start_step(self) -> int | None:
        """Finished steps after which `warmup_stable_decay` lowers the rate; None for the other schedules."""
        if self.schedule != "warmup_stable_decay":
            return None
        return self.num_train_steps - wsd_decay_steps(self.num_train_steps, self.num_decay_steps)


def wsd_decay_steps(num_train_steps: int, num_decay_steps: int | None) -> int:
    """Number of final steps in which `warmup_stable_decay` decays the rate."""
    return max(1, round(WSD_DECAY_SHARE * num_train_steps)) if num_decay_steps is None else num_decay_steps


def lengths_problem(model: ModelConfig, pretraining: PretrainingConfig) -> str | None:
    """The error for a phase that is longer than the model's positions; None if all fit."""
    for index, phase in enumerate(pretraining.phases):
        if phase.max_seq_length > model.max_position_embeddings:
            return (
                f"pretraining.phases.{index}.max_seq_length = {phase.max_seq_length} exceeds "
                f"model.max_position_embeddings = {model.max_position_embeddings}; "
                "raise the latter or shorten the phase"
            )
    return None


def require_lengths_fit(model: ModelConfig, pretraining: PretrainingConfig, recipe_path: str) -> None:
    """Check the lengths of the phases against the model's positions.

    Raises:
        InputError: a phase is longer than the model's positions.
    """
    if problem := lengths_problem(model, pretraining):
        raise InputError(f"{recipe_path}: {problem}")
