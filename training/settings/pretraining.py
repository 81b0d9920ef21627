"""Recipe section `[pretraining]`; light to import, without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.contract.bounds import (
    Bounded,
    Count,
    CountOrNone,
    MaskedShare,
    Probability,
    SequenceLength,
    Text,
    UserPath,
)
from pipelines.contract.bounds import Processes as Ranks
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import ADDED, OPERATIONAL, Section
from pipelines.contract.workspace import length_directory
from training.settings.cluster import ClusterConfig
from training.settings.model import ModelConfig
from training.settings.optimization import OPTIMIZERS, BatchSize, LearningRate, LoopConfig, Rate, ScheduleKind

WSD_DECAY_SHARE = 0.1
"""Share of the steps in which warm-up-stable-decay decays the rate (Hu et al., 2024, section 4.3)."""

_STEP_TOKENS = "gradients of this many tokens are summed in one step"


PairsMethod = Literal["word-l2r", "original"]
"""What a masked copy masks next to the token that it predicts: `word-l2r` the later pieces of the same word, too, since
they give it away (Kauf & Ivanova, 2023, section 3), `original` nothing (Salazar et al., 2020, equation 2)."""
WORD_L2R: PairsMethod = "word-l2r"

Measure = Literal["steps", "epochs", "tokens", "hours"]
"""What a run's length and its learning-rate schedule are counted in; each is a setting of a phase."""
MEASURES: tuple[Measure, ...] = ("steps", "epochs", "tokens", "hours")

DEFAULT_WARMUP_PROPORTION = 0.01
"""BERT's own: 10,000 of 1,000,000 steps (paper, appendix A.2)."""


class BatchWarmup(Section):
    """`batch_warmup`: start with a smaller global batch; the learning rate does not depend on it.

    The batch grows linearly in whole sequences, as GPT-3's (Brown et al., 2020, appendix B).
    """

    start: BatchSize
    """Sequences of the phase's first step."""
    steps: Count
    """Step of the phase from which on the batch is global_batch_size."""


class PhaseConfig(Section):
    """`[[pretraining.phases]]`: one phase of pre-training at one maximum length; its length is one of MEASURES."""

    max_seq_length: SequenceLength
    steps: Count | None = Field(default=None, json_schema_extra=ADDED)
    epochs: Annotated[float, Bounded(0, 10_000, "each epoch reads all training rows once", above_low=True)] | None = (
        Field(default=None, json_schema_extra=ADDED)
    )
    """Readings of all training rows of this length; the last step may read a few rows more."""
    tokens: Annotated[int, Bounded(1, 1 << 53, "it counts tokens of all steps, without padding")] | None = Field(
        default=None, json_schema_extra=ADDED
    )
    """Tokens without padding; the phase ends with the step in which the run has had those of all phases so far."""
    hours: Annotated[float, Bounded(0, 100_000, "100,000 hours are eleven years", above_low=True)] | None = Field(
        default=None, json_schema_extra=ADDED
    )
    """Hours of training with evaluations and checkpoints, without the start of processes, over all resumes."""
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
    batch_warmup: BatchWarmup | None = Field(default=None, json_schema_extra=ADDED)
    """Raise the batch from `start` sequences to global_batch_size in the phase's first `steps` steps."""

    @model_validator(mode="after")
    def _one_measure(self) -> PhaseConfig:
        given = [name for name in MEASURES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a phase is as long as one of {', '.join(MEASURES)} says; this one has "
                f"{' and '.join(given) or 'none of them'}; give exactly one"
            )
        return self

    @model_validator(mode="after")
    def _batch_grows(self) -> PhaseConfig:
        warmup = self.batch_warmup
        if warmup is None:
            return self
        if self.global_batch_tokens is not None:
            raise ValueError(
                f"batch_warmup with global_batch_tokens = {self.global_batch_tokens}: it raises global_batch_size; set "
                "that instead, or remove batch_warmup"
            )
        if warmup.start >= self.global_batch_size:
            raise ValueError(
                f"batch_warmup.start = {warmup.start} is not below global_batch_size = {self.global_batch_size}; lower "
                "it, or remove batch_warmup"
            )
        if self.steps is not None and warmup.steps >= self.steps:
            raise ValueError(
                f"batch_warmup.steps = {warmup.steps} is not below the phase's steps = {self.steps}; lower it"
            )
        return self

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
    def measure(self) -> Measure:
        """What the phase's length is counted in."""
        return next(name for name in MEASURES if getattr(self, name) is not None)

    @property
    def amount(self) -> float:
        """The phase's length in its measure."""
        amount: float = getattr(self, self.measure)
        return amount

    def batch_size_at(self, phase_step: int) -> int:
        """Sequences of the step after `phase_step` finished ones of this phase, unless batches are by tokens."""
        warmup = self.batch_warmup
        if warmup is None or phase_step >= warmup.steps:
            return self.global_batch_size
        return warmup.start + (self.global_batch_size - warmup.start) * phase_step // warmup.steps

    @property
    def full_sequences(self) -> int:
        """Sequences of a step if all have the maximum length."""
        return (
            self.global_batch_size
            if self.global_batch_tokens is None
            else self.global_batch_tokens // self.max_seq_length
        )


class MaskSharesConfig(Section):
    """`[pretraining.mask_shares]`: what becomes of a token to predict; the rest stays as it is. Table 8 of the paper
    compares such shares. BERT's are 80 % [MASK], 10 % random."""

    mask: Probability = 0.8
    """Share that becomes [MASK]."""
    random: Probability = 0.1
    """Share that becomes any token of the vocabulary."""

    @model_validator(mode="after")
    def _shares_are_of_one(self) -> MaskSharesConfig:
        # Decimal fractions add up to a little more or less than 1.
        if self.mask + self.random > 1.0 + 1e-9:
            raise ValueError(f"mask = {self.mask} and random = {self.random} are more than all tokens; lower one")
        return self


BERT_SHARES = MaskSharesConfig()


class MinimalPairsConfig(Section):
    """`[pretraining.minimal_pairs]`: accuracy on minimal pairs at held-out evaluations, on a sample."""

    data: UserPath
    """A directory or a file of pairs as `clozeworks blimp --data` takes it, or `heldout`: pairs made from the corpus's
    own held-out documents (word order, agreement, articles)."""
    pairs_per_group: Count = 20
    """Pairs of each group (BLiMP's paradigms) to score, drawn once; all of BLiMP's have 1,000."""
    method: PairsMethod = WORD_L2R
    """A left-to-right model masks nothing."""
    every_steps: Count | None = None
    """Steps between two measurements, a multiple of eval_every_steps; None measures at each evaluation. They are also
    made before the first step and at the end."""


class PretrainingConfig(LoopConfig):
    """`[pretraining]`: objective, optimizer and schedule; the defaults are those of the paper, appendix A.2."""

    phases: tuple[PhaseConfig, ...] = (
        PhaseConfig(max_seq_length=128, steps=900_000, global_batch_size=256),
        PhaseConfig(max_seq_length=512, steps=100_000, global_batch_size=256),
    )
    mask_shares: MaskSharesConfig = Field(default=BERT_SHARES, json_schema_extra=ADDED)
    """What becomes of the tokens to predict, where training draws the masks."""
    learning_rate: LearningRate = 1e-4
    num_warmup_steps: CountOrNone = 10_000
    schedule: ScheduleKind = "linear"
    """The decay after warm-up, one over all phases; formulas in training/optimizers/schedule.py."""
    num_decay_steps: Count | None = None
    """Number of final steps in which `warmup_stable_decay` decays the rate to 0; None is a tenth of all steps."""
    warmup_proportion: Rate | None = Field(default=None, json_schema_extra=ADDED)
    """Warm-up where phases are by epochs, tokens or hours: this share of them; None is BERT's, 0.01."""
    decay_proportion: Annotated[float, Bounded(0.0, 1.0, "it is a share of the run", above_low=True)] | None = Field(
        default=None, json_schema_extra=ADDED
    )
    """Decay of `warmup_stable_decay` where phases are by epochs, tokens or hours; None is a tenth of them."""
    zero_stage: Annotated[int, Bounded(0, 3, "ZeRO has the stages 1, 2 and 3; 0 disables it")] = 2
    offload_optimizer: bool = False
    """Keep and update master weights and moments in host memory (ZeRO-Offload)."""

    # A path, not a setting: the encoder's files enter the stage key by their digest.
    initial_encoder: UserPath | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Continue from this encoder instead of random weights: a Hugging Face directory, a workspace, `models:/...`.

    `[model]` is then read from the encoder; only dropout and longer max_position_embeddings may be set there.
    """
    initial_encoder_share: Rate = Field(default=0.0, json_schema_extra=ADDED)
    """Share of the initial encoder in the exported weights, which are the mean of both (Wortsman et al., 2022)."""
    minimal_pairs: MinimalPairsConfig | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Score minimal pairs during training; None does not."""
    reference: UserPath | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """A curve to compare the run with: a JSON file of `clozeworks curve`, or the name of one in
    training/reference_curves. A run that leaves the band around it raises an alarm; the report draws it."""
    ranks: Ranks = Field(default=0, json_schema_extra=OPERATIONAL)
    """Processes of one node; 0 means one per GPU, or two without GPUs."""
    cluster: ClusterConfig = Field(default=ClusterConfig(), json_schema_extra=OPERATIONAL)

    @model_validator(mode="after")
    def _phases_fit(self) -> PretrainingConfig:
        if not self.phases:
            raise ValueError("phases is empty; give at least one phase with max_seq_length and steps")
        measures = {phase.measure: index for index, phase in reversed(list(enumerate(self.phases)))}
        if len(measures) > 1:
            (one, first), (other, second), *_ = sorted(measures.items(), key=lambda item: item[1])
            raise ValueError(
                f"phases.{first} is by {one} and phases.{second} by {other}; one schedule runs over all phases, so "
                "give all of them by the same measure"
            )
        if self.num_train_steps is not None and self.num_warmup_steps >= self.num_train_steps:
            raise ValueError(
                f"num_warmup_steps = {self.num_warmup_steps} is not below the {self.num_train_steps} steps of all "
                "phases; lower it, or train longer"
            )
        return self

    @model_validator(mode="after")
    def _settings_go_together(self) -> PretrainingConfig:
        name, purpose = self.optimizer, OPTIMIZERS[self.optimizer].reads_matrices_to
        if self.zero_stage and purpose:
            raise ValueError(
                f"optimizer = {name!r} with zero_stage = {self.zero_stage}: {name} needs each matrix to {purpose}, "
                f"and ZeRO 1-3 cut all matrices into flat pieces; set zero_stage = 0, or use 'adamw'"
            )
        if self.offload_optimizer and not self.zero_stage:
            raise ValueError(
                "offload_optimizer = true with zero_stage = 0: only ZeRO moves the optimizer's state; set zero_stage "
                "to 1, 2 or 3, or turn offload_optimizer off"
            )
        if self.initial_encoder_share and (self.initial_encoder is None or self.zero_stage == 3):
            raise ValueError("initial_encoder_share needs an initial_encoder, and a zero_stage below 3")
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile = true with zero_stage = 3: ZeRO-3 gathers weights by hooks inside the compiled part; "
                "set zero_stage to 0, 1 or 2, or turn compile off"
            )
        return self

    @model_validator(mode="after")
    def _pairs_are_scored_at_evaluations(self) -> PretrainingConfig:
        every = self.minimal_pairs.every_steps if self.minimal_pairs is not None else None
        if every is not None and every % self.eval_every_steps:
            raise ValueError(
                f"minimal_pairs.every_steps = {every} is not a multiple of eval_every_steps = {self.eval_every_steps}; "
                "pairs are scored at evaluations, so make it one"
            )
        return self

    @model_validator(mode="after")
    def _schedule_is_by_the_measure(self) -> PretrainingConfig:
        measure, fields = self.measure, type(self).model_fields
        settings = {"steps": ("warmup_proportion", "decay_proportion")}.get(
            measure, ("num_warmup_steps", "num_decay_steps")
        )
        for name, instead in zip(settings, ("num_warmup_steps", "num_decay_steps"), strict=True):
            # Manifests record every setting, so reject a value only if it differs from the default.
            if (value := getattr(self, name)) == fields[name].default:
                continue
            if measure == "steps":
                raise ValueError(f"{name} = {value}, but the phases are by steps; set {instead} instead")
            share = instead.removeprefix("num_").replace("_steps", "_proportion")
            raise ValueError(f"{name} = {value} counts steps, but the phases are by {measure}; set {share} instead")
        if self.decay_proportion is not None and self.schedule != "warmup_stable_decay":
            raise ValueError(
                f"decay_proportion = {self.decay_proportion} with schedule = {self.schedule!r}, which decays all the "
                "time; remove it, or use schedule = 'warmup_stable_decay'"
            )
        if (self.warmup_proportion or 0.0) + (self.decay_proportion or 0.0) > 1.0:
            raise ValueError(
                f"warmup_proportion = {self.warmup_proportion} and decay_proportion = {self.decay_proportion} exceed "
                "the run; lower one"
            )
        return self

    @model_validator(mode="after")
    def _decay_fits(self) -> PretrainingConfig:
        if self.num_decay_steps is None or self.num_train_steps is None:
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
    def measure(self) -> Measure:
        """What the phases' lengths and the schedule are counted in."""
        return self.phases[0].measure

    @property
    def num_train_steps(self) -> int | None:
        """Optimizer steps of all phases together; None if the phases are by another measure."""
        steps = [phase.steps for phase in self.phases if phase.steps is not None]
        return sum(steps) if len(steps) == len(self.phases) else None

    @property
    def decay_start_step(self) -> int | None:
        """Finished steps after which `warmup_stable_decay` lowers the rate; None for other schedules and measures."""
        if self.schedule != "warmup_stable_decay" or self.num_train_steps is None:
            return None
        return self.num_train_steps - wsd_decay_steps(self.num_train_steps, self.num_decay_steps)


def wsd_decay_steps(num_train_steps: int, num_decay_steps: int | None) -> int:
    """Number of final steps in which `warmup_stable_decay` decays the rate."""
    return max(1, round(WSD_DECAY_SHARE * num_train_steps)) if num_decay_steps is None else num_decay_steps


def model_problem(model: ModelConfig, pretraining: PretrainingConfig) -> str | None:
    """The error for settings that do not fit the model; None if all do."""
    for index, phase in enumerate(pretraining.phases):
        if phase.max_seq_length > model.max_position_embeddings:
            return (
                f"pretraining.phases.{index}.max_seq_length = {phase.max_seq_length} exceeds "
                f"model.max_position_embeddings = {model.max_position_embeddings}; "
                "raise the latter or shorten the phase"
            )
    settings = {
        "masking": pretraining.masking != "as_written",
        "mask_shares": pretraining.mask_shares != BERT_SHARES,
        "phases.masked_lm_prob": any(phase.masked_lm_prob is not None for phase in pretraining.phases),
        "minimal_pairs.method": pretraining.minimal_pairs is not None and pretraining.minimal_pairs.method != WORD_L2R,
    }
    if model.predicts_next_tokens and (unused := [name for name, is_set in settings.items() if is_set]):
        return (
            f"pretraining.{unused[0]} has no effect with model.attention = {model.attention!r}, which masks nothing "
            "and predicts the next token; remove it"
        )
    if model.num_encoders > 1 and pretraining.initial_encoder is not None:
        return (
            f"pretraining.initial_encoder with model.attention = {model.attention!r}: two encoders cannot start from "
            "one; remove one of the settings"
        )
    return None


def require_model_fits(model: ModelConfig, pretraining: PretrainingConfig, recipe_path: str) -> None:
    """Check the settings of pre-training against the model's.

    Raises:
        InputError: a phase is longer than the model's positions, or a setting does not apply to such a model.
    """
    if problem := model_problem(model, pretraining):
        raise InputError(f"{recipe_path}: {problem}")
