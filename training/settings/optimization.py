"""Settings of optimizer and loop that several sections share, with the table of optimizers; light, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import Field, model_validator

from pipelines.contract.bounds import Bounded, Count, CountOrNone, Seed, SequenceLength
from pipelines.contract.recipe import OPERATIONAL, Section

Rate = Annotated[float, Bounded(0.0, 1.0, "it is a share, and something must be left", below_high=True)]


LearningRate = Annotated[
    float,
    Bounded(1e-10, 10.0, "weights of about 0.02 do not move at smaller rates and are thrown about at larger ones"),
]


BatchSize = Annotated[int, Bounded(1, 1 << 24, "gradients of so many rows are added up in one step")]


WeightDecay = Annotated[float, Bounded(0.0, 10.0, "it is a share of each weight; BERT has 0.01")]


Epsilon = Annotated[float, Bounded(1e-30, 0.1, "it only keeps a division from 0: smaller is 0 to the hardware")]


Norm = Annotated[float, Bounded(0.0, 1e6, "it limits the gradient's norm, which is about 1; 0 turns that off")]


Precision = Literal["auto", "fp32", "bf16", "fp16"]


class OptimizerFacts(NamedTuple):
    """What the settings have to know about an optimizer; `training.engine.optimizer` has its class."""

    corrects_bias: bool
    """Default of `adam_bias_correction`: as the optimizer's source has it."""
    always_corrects_bias: bool = False
    works_under_zero: bool = True
    """Does it treat each weight by itself, so that ZeRO may cut matrices into flat pieces?"""
    for_large_batches_only: bool = False


OPTIMIZERS = {
    "adam": OptimizerFacts(corrects_bias=False),
    "adamw": OptimizerFacts(corrects_bias=True, always_corrects_bias=True),
    "lamb": OptimizerFacts(corrects_bias=True, works_under_zero=False, for_large_batches_only=True),
}
"""A new optimizer is one builder in `training.engine.optimizer` and one row here."""

if TYPE_CHECKING:
    Optimizer: TypeAlias = str
else:
    Optimizer = Literal[tuple(OPTIMIZERS)]


ScheduleKind = Literal["linear", "cosine", "warmup_stable_decay"]
"""The decay after warm-up: training/engine/schedule.py has the formulas."""

Deviations = Annotated[float, Bounded(0.0, 1e6, "it counts robust standard deviations, and 0 looks for no spike")]


class OptimizerConfig(Section):
    """What pre-training and fine-tuning share: BERT's Adam with the paper's settings, clipping, precision."""

    optimizer: Optimizer = "adam"
    """`adam` is that of the released code, `adamw` PyTorch's own fused one, `lamb` for very large batches."""
    weight_decay: WeightDecay = 0.01
    adam_beta1: Rate = 0.9
    adam_beta2: Rate = 0.999
    adam_eps: Epsilon = 1e-6
    adam_bias_correction: bool = False
    """Left out, it is as the optimizer's source has it: off in BERT's Adam, on in AdamW and LAMB."""
    max_grad_norm: Norm = 1.0
    """Gradients are clipped to this global norm; 0 turns clipping off."""
    precision: Precision = "auto"
    """`auto` is bf16 on a GPU that has it, fp32 elsewhere; fp16, with dynamic loss scaling, needs a GPU."""

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
                "leave that out, or use optimizer = 'adam'"
            )
        return self

    def refuse_large_batch_optimizer(self, verb: str) -> None:
        """Refuse an optimizer that is made for very large batches.

        Raises:
            ValueError: the recipe names one.
        """
        if OPTIMIZERS[self.optimizer].for_large_batches_only:
            others = " or ".join(repr(name) for name, facts in OPTIMIZERS.items() if not facts.for_large_batches_only)
            raise ValueError(f"optimizer = {self.optimizer!r} is for very large batches; {verb} with {others}")


class LoopConfig(OptimizerConfig):
    """What the sections that train by `training.pretraining.run` share: pre-training and distillation."""

    seed: Seed = 12_345
    masking: Literal["as_written", "dynamic"] = "as_written"
    """`dynamic` draws masks anew in each epoch, in place of those written; unmasked examples always get that."""

    micro_batch_size: BatchSize | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Sequences a rank computes at once; None computes its whole share of the global batch without accumulation."""
    activation_checkpointing: bool = Field(default=False, json_schema_extra=OPERATIONAL)
    """Keep each layer's input only and compute the layer again in backward: less memory, a third more work."""
    compile: bool = Field(default=False, json_schema_extra=OPERATIONAL)
    """Let torch.compile fuse what lies between matrix products; dropout then draws other, equally keyed numbers."""
    eval_every_steps: Count = Field(default=10_000, json_schema_extra=OPERATIONAL)
    eval_examples: Count = Field(default=2_048, json_schema_extra=OPERATIONAL)
    """Held-out examples that one evaluation reads at most."""
    checkpoint_every_steps: Count = Field(default=1_000, json_schema_extra=OPERATIONAL)
    keep_checkpoints: Count = Field(default=2, json_schema_extra=OPERATIONAL)
    keep_every_n_steps: CountOrNone = Field(default=0, json_schema_extra=OPERATIONAL)
    """Checkpoints at multiples of this many steps are never deleted; 0 keeps none but the newest."""
    async_checkpoints: bool = Field(default=True, json_schema_extra=OPERATIONAL)
    """Write checkpoints while training goes on, from a copy in main memory (12 bytes per parameter, over all ranks)."""
    max_bad_steps: Count = Field(default=10, json_schema_extra=OPERATIONAL)
    """Steps in a row with a loss or gradient that is not finite, or with a loss spike, that lead back to a checkpoint.

    This and the next two act only on a run that is going wrong: that it can be continued with others is their point.
    """
    loss_spike_deviations: Deviations = Field(default=10.0, json_schema_extra=OPERATIONAL)
    """A spike lies this many robust standard deviations above the median of recent losses; 0 looks for none."""
    max_rollbacks: CountOrNone = Field(default=3, json_schema_extra=OPERATIONAL)
    """Returns to a checkpoint before a run gives up."""
    log_every_steps: Count = Field(default=100, json_schema_extra=OPERATIONAL)


Epochs = Annotated[int, Bounded(1, 10_000, "each epoch reads all training rows once")]
EpochsOrNone = Annotated[int, Bounded(0, 10_000, "it counts epochs, and 0 trains them all")]


class FittingConfig(Section):
    """What every task's fine-tuning has, with the paper's settings for GLUE (section 4.1) as defaults."""

    batch_size: BatchSize = 32
    """Rows of one optimizer step, over all ranks."""
    learning_rate: LearningRate = 2e-5
    num_train_epochs: Epochs = 3
    warmup_proportion: Rate = 0.1
    max_seq_length: SequenceLength = 128
    early_stopping_epochs: EpochsOrNone = 0
    """Stop after so many epochs in a row without a better score on the development rows; 0 trains all epochs."""
    seed: Seed = 12_345
    log_every_steps: Count = Field(default=50, json_schema_extra=OPERATIONAL)
