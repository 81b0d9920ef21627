"""Optimizer and loop settings shared by several sections, and the table of optimizers; light, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import Field, model_validator

from pipelines.contract.bounds import Bounded, Count, CountOrNone, Seed, SequenceLength
from pipelines.contract.recipe import OPERATIONAL, Section

Rate = Annotated[float, Bounded(0.0, 1.0, "it is a share, and something must be left", below_high=True)]


LearningRate = Annotated[
    float,
    Bounded(1e-10, 10.0, "weights of about 0.02 do not change at smaller rates and diverge at larger ones"),
]


BatchSize = Annotated[int, Bounded(1, 1 << 24, "gradients of this many rows are summed in one step")]


WeightDecay = Annotated[float, Bounded(0.0, 10.0, "it is a share of each weight; BERT has 0.01")]


Epsilon = Annotated[float, Bounded(1e-30, 0.1, "it only prevents division by 0, and smaller values round to 0")]


Norm = Annotated[float, Bounded(0.0, 1e6, "it limits the gradient's norm, which is about 1; 0 disables it")]


PRECISION = "precision"
"""The setting, and what it was in the statistics of checkpoints and finished runs."""
Precision = Literal["auto", "fp32", "bf16", "fp16"]


class OptimizerFacts(NamedTuple):
    """Facts about an optimizer that the settings depend on; `training.optimizers.building` has its class."""

    corrects_bias: bool
    """Default of `adam_bias_correction`, as in the optimizer's source."""
    always_corrects_bias: bool = False
    reads_matrices_to: str = ""
    """What it needs all of a matrix for; ZeRO 1-3 partition matrices into flat pieces. Empty: it treats each weight
    separately."""
    only_for: str = ""
    """What it is for, where that excludes fine-tuning."""


OPTIMIZERS = {
    "adam": OptimizerFacts(corrects_bias=False),
    "adamw": OptimizerFacts(corrects_bias=True, always_corrects_bias=True),
    "lamb": OptimizerFacts(
        corrects_bias=True,
        reads_matrices_to="scale its change by its norm",
        only_for="very large batches",
    ),
    "muon": OptimizerFacts(
        corrects_bias=True,
        reads_matrices_to="make its change orthogonal",
        only_for="pre-training",
    ),
}
"""A new optimizer needs one builder in `training.optimizers.building` and one row here."""

if TYPE_CHECKING:
    Optimizer: TypeAlias = str
else:
    Optimizer = Literal[tuple(OPTIMIZERS)]


ScheduleKind = Literal["linear", "cosine", "warmup_stable_decay"]
"""The decay after warm-up; formulas in training/optimizers/schedule.py."""

Deviations = Annotated[float, Bounded(0.0, 1e6, "it counts robust standard deviations; 0 disables spike detection")]


class OptimizerConfig(Section):
    """Settings shared by pre-training and fine-tuning: BERT's Adam with the paper's values, clipping, precision."""

    optimizer: Optimizer = "adam"
    """`adam` is the released code's, `adamw` PyTorch's fused one, `lamb` is for very large batches, `muon` makes the
    changes of the layers' matrices orthogonal and is AdamW for all other weights."""
    weight_decay: WeightDecay = 0.01
    adam_beta1: Rate = 0.9
    adam_beta2: Rate = 0.999
    adam_eps: Epsilon = 1e-6
    adam_bias_correction: bool = False
    """By default as in the optimizer's source: off in BERT's Adam, on in AdamW and LAMB."""
    max_grad_norm: Norm = 1.0
    """Gradients are clipped to this global norm; 0 disables clipping."""
    precision: Precision = "auto"
    """`auto` is bf16 on a GPU that supports it, and in pre-training on a CPU with AMX or AVX512-BF16 that makes its
    products 1.5 times as fast in it, for a hidden size of 256 or more; fp32 elsewhere. fp16, with a dynamic loss scale,
    needs a GPU."""

    @model_validator(mode="before")
    @classmethod
    def _correct_bias_as_the_source(cls, values: Any) -> Any:
        facts = OPTIMIZERS.get(str(values.get("optimizer"))) if isinstance(values, dict) else None
        return {"adam_bias_correction": True, **values} if facts is not None and facts.corrects_bias else values

    @model_validator(mode="after")
    def _bias_is_corrected(self) -> OptimizerConfig:
        if OPTIMIZERS[self.optimizer].always_corrects_bias and not self.adam_bias_correction:
            raise ValueError(
                f"optimizer = {self.optimizer!r} is Adam with bias correction, but adam_bias_correction = false; "
                "remove that setting, or use optimizer = 'adam'"
            )
        return self

    def refuse_pretraining_optimizer(self, verb: str) -> None:
        """Refuse an optimizer that is for pre-training.

        Raises:
            ValueError: the recipe names one.
        """
        if purpose := OPTIMIZERS[self.optimizer].only_for:
            others = " or ".join(repr(name) for name, facts in OPTIMIZERS.items() if not facts.only_for)
            raise ValueError(f"optimizer = {self.optimizer!r} is for {purpose}; {verb} with {others}")


SPANS = "dynamic_span"
"""The value of `masking` that masks spans of words."""


class LoopConfig(OptimizerConfig):
    """Settings shared by the sections that train by `training.pretraining.run`: pre-training and distillation."""

    seed: Seed = 12_345
    masking: Literal["as_written", "dynamic", "dynamic_whole_word", "dynamic_span"] = "as_written"
    """`dynamic` draws new masks in each epoch instead of those in the examples; always so for unmasked examples.
    `dynamic_whole_word` masks all pieces of a word together, `dynamic_span` spans of words as SpanBERT does, whichever
    way the examples were masked."""

    micro_batch_size: BatchSize | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Sequences that a rank computes at once; None computes its complete share of the global batch at once."""
    activation_checkpointing: bool = Field(default=False, json_schema_extra=OPERATIONAL)
    """Store only each layer's input and recompute the layer in backward: less memory, a third more work."""
    compile: bool = Field(default=False, json_schema_extra=OPERATIONAL)
    """Fuse the operations between matrix products by torch.compile; dropout then draws other, equally keyed numbers."""
    eval_every_steps: Count = Field(default=10_000, json_schema_extra=OPERATIONAL)
    eval_examples: Count = Field(default=2_048, json_schema_extra=OPERATIONAL)
    """Maximum number of held-out examples per evaluation."""
    checkpoint_every_steps: Count = Field(default=1_000, json_schema_extra=OPERATIONAL)
    keep_checkpoints: Count = Field(default=2, json_schema_extra=OPERATIONAL)
    keep_every_n_steps: CountOrNone = Field(default=0, json_schema_extra=OPERATIONAL)
    """Checkpoints at multiples of this many steps are never deleted; 0 keeps the newest only."""
    keep_finished: CountOrNone | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Number of earlier finished results that are kept under numbered names; None keeps all of them."""
    async_checkpoints: bool = Field(default=True, json_schema_extra=OPERATIONAL)
    """Write checkpoints while training continues, from a copy in main memory (12 bytes per parameter, all ranks)."""
    max_bad_steps: Count = Field(default=10, json_schema_extra=OPERATIONAL)
    """Number of bad steps in a row (loss or gradient not finite, or a loss spike) before a return to a checkpoint.

    This and the next two affect a failing run only, and are meant to be changed when it is continued.
    """
    loss_spike_deviations: Deviations = Field(default=10.0, json_schema_extra=OPERATIONAL)
    """A spike is this many robust standard deviations above the median of recent losses; 0 disables detection."""
    max_rollbacks: CountOrNone = Field(default=3, json_schema_extra=OPERATIONAL)
    """Number of returns to a checkpoint before the run gives up."""
    log_every_steps: Count = Field(default=100, json_schema_extra=OPERATIONAL)


Epochs = Annotated[int, Bounded(1, 10_000, "each epoch reads all training rows once")]
EpochsOrNone = Annotated[int, Bounded(0, 10_000, "it counts epochs, and 0 trains them all")]


class FittingConfig(Section):
    """Settings of every fine-tuning task; the defaults are the paper's for GLUE (section 4.1)."""

    batch_size: BatchSize = 32
    """Rows of one optimizer step, over all ranks."""
    learning_rate: LearningRate = 2e-5
    num_train_epochs: Epochs = 3
    warmup_proportion: Rate = 0.1
    max_seq_length: SequenceLength = 128
    early_stopping_epochs: EpochsOrNone = 0
    """Stop after this many epochs in a row without a better development score; 0 trains all epochs."""
    seed: Seed = 12_345
    log_every_steps: Count = Field(default=50, json_schema_extra=OPERATIONAL)
