"""Recipe sections `[model]` and `[pretraining]`, and the optimizer's settings; light to import, without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.contract.bounds import Bounded, Count, CountOrNone, Seed, SequenceLength
from pipelines.contract.bounds import Processes as Ranks
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import OPERATIONAL, Section

Rate = Annotated[float, Bounded(0.0, 1.0, "it is a share, and something must be left", below_high=True)]
LearningRate = Annotated[
    float,
    Bounded(1e-10, 10.0, "weights of about 0.02 do not move at smaller rates and are thrown about at larger ones"),
]
BatchSize = Annotated[int, Bounded(1, 1 << 24, "gradients of so many rows are added up in one step")]
Deviations = Annotated[float, Bounded(0.0, 1e6, "it counts robust standard deviations, and 0 looks for no spike")]
WeightDecay = Annotated[float, Bounded(0.0, 10.0, "it is a share of each weight; BERT has 0.01")]
Epsilon = Annotated[float, Bounded(1e-30, 0.1, "it only keeps a division from 0: smaller is 0 to the hardware")]
Spread = Annotated[float, Bounded(1e-6, 10.0, "it is the standard deviation of new weights; BERT has 0.02")]
Norm = Annotated[float, Bounded(0.0, 1e6, "it limits the gradient's norm, which is about 1; 0 turns that off")]
_WIDTH = "each layer has matrices of this width, and all are held in memory"
_STEP_TOKENS = "gradients of so many tokens are added up in one step"

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Optimizer = Literal["adam", "adamw", "lamb"]
Schedule = Literal["linear", "cosine", "warmup_stable_decay"]

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
    "small": {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
"""`model.size`: base and large as in the paper, section 3; tiny and small as in Turc et al., 2019, table 1."""


class ModelConfig(Section):
    """`[model]`: the encoder's architecture; its vocabulary's size comes from the vocabulary stage.

    The defaults are BERT-base of the paper, section 3; names are those of the released code's bert_config.json.
    """

    size: Literal["tiny", "small", "base", "large"] | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """A name for the four numbers of SHAPES; a number given beside it takes precedence."""
    hidden_size: Annotated[int, Bounded(1, 65_536, _WIDTH)] = 768
    num_hidden_layers: Annotated[int, Bounded(1, 1_000, "BERT-large has 24, and all are held in memory")] = 12
    num_attention_heads: Annotated[int, Bounded(1, 4_096, "heads share hidden_size among them")] = 12
    intermediate_size: Annotated[int, Bounded(1, 1 << 20, _WIDTH)] = 3072
    max_position_embeddings: SequenceLength = 512
    type_vocab_size: Annotated[int, Bounded(2, 1_024, "a row has two segments")] = 2
    hidden_act: Literal["gelu", "gelu_new"] = "gelu"
    """`gelu` is the exact one (erf), with which the paper's models were trained; `gelu_new` its tanh approximation, in
    the released code since February 2019. Both are Hugging Face's names."""
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    layer_norm_eps: Epsilon = 1e-12
    initializer_range: Spread = 0.02

    @model_validator(mode="before")
    @classmethod
    def _expand_size(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("size"), str):
            return {**SHAPES.get(values["size"], {}), **values}
        return values

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not a multiple of num_attention_heads = "
                f"{self.num_attention_heads}; change one so that every head has the same size"
            )
        return self

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


class PhaseConfig(Section):
    """`[[pretraining.phases]]`: one stretch of pre-training at one maximum length."""

    max_seq_length: SequenceLength
    steps: Count
    global_batch_size: BatchSize = 256
    """Sequences per optimizer step, over all ranks and micro-batches."""
    global_batch_tokens: Annotated[int, Bounded(1, 1 << 34, _STEP_TOKENS)] | None = None
    """Fill each step with as many sequences as have at most so many tokens together, instead of global_batch_size."""

    @model_validator(mode="after")
    def _one_batch_size(self) -> PhaseConfig:
        if self.global_batch_tokens is None:
            return self
        # A manifest names every setting, so only one that was changed tells a mistake.
        if self.global_batch_size != type(self).model_fields["global_batch_size"].default:
            raise ValueError(
                f"global_batch_size = {self.global_batch_size} and global_batch_tokens = {self.global_batch_tokens}: "
                "a step is filled by sequences or by tokens; leave one out"
            )
        if self.global_batch_tokens < self.max_seq_length:
            raise ValueError(
                f"global_batch_tokens = {self.global_batch_tokens} has no room for a sequence of max_seq_length = "
                f"{self.max_seq_length}; raise it"
            )
        return self

    @property
    def full_sequences(self) -> int:
        """Sequences of a step where all have the maximum length."""
        return (
            self.global_batch_size
            if self.global_batch_tokens is None
            else self.global_batch_tokens // self.max_seq_length
        )


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
        if isinstance(values, dict) and values.get("optimizer") in ("adamw", "lamb"):
            return {"adam_bias_correction": True, **values}
        return values

    @model_validator(mode="after")
    def _adamw_corrects_bias(self) -> OptimizerConfig:
        if self.optimizer == "adamw" and not self.adam_bias_correction:
            raise ValueError(
                "optimizer = 'adamw' is Adam with bias correction, but adam_bias_correction = false; "
                "leave that out, or use optimizer = 'adam'"
            )
        return self


class PretrainingConfig(OptimizerConfig):
    """`[pretraining]`: objective, optimizer and schedule; the defaults are those of the paper, appendix A.2."""

    seed: Seed = 12_345
    phases: tuple[PhaseConfig, ...] = (
        PhaseConfig(max_seq_length=128, steps=900_000, global_batch_size=256),
        PhaseConfig(max_seq_length=512, steps=100_000, global_batch_size=256),
    )
    learning_rate: LearningRate = 1e-4
    num_warmup_steps: CountOrNone = 10_000
    schedule: Schedule = "linear"
    """The decay after warm-up, one over all phases: training/engine/schedule.py has the formulas."""
    masking: Literal["as_written", "dynamic"] = "as_written"
    """`dynamic` draws masks anew in each epoch, in place of those written; unmasked examples always get that."""
    num_decay_steps: Count | None = None
    """Last steps in which `warmup_stable_decay` lowers the rate to 0; None is a tenth of all steps."""
    zero_stage: Annotated[int, Bounded(0, 3, "ZeRO has the stages 1, 2 and 3; 0 turns it off")] = 2
    offload_optimizer: bool = False
    """Keep master weights and moments in the host's memory and update them there (ZeRO-Offload)."""

    micro_batch_size: BatchSize | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Sequences a rank computes at once; None computes its whole share of the global batch without accumulation."""
    activation_checkpointing: bool = Field(default=False, json_schema_extra=OPERATIONAL)
    """Keep each layer's input only and compute the layer again in backward: less memory, a third more work."""
    compile: bool = Field(default=False, json_schema_extra=OPERATIONAL)
    """Let torch.compile fuse what lies between matrix products; dropout then draws other, equally keyed numbers."""
    ranks: Ranks = Field(default=0, json_schema_extra=OPERATIONAL)
    """Processes of one node; 0 means one per GPU, or two where there is none."""
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
        if self.optimizer == "lamb" and self.zero_stage:
            raise ValueError(
                f"optimizer = 'lamb' with zero_stage = {self.zero_stage}: LAMB scales each matrix's update by that "  # noqa: S608  # no SQL: a message
                "matrix's norm, and ZeRO 1-3 cut all matrices into flat pieces; set zero_stage = 0, or use 'adamw'"
            )
        if self.offload_optimizer and not self.zero_stage:
            raise ValueError(
                "offload_optimizer = true with zero_stage = 0: only ZeRO moves the optimizer's state; set zero_stage "
                "to 1, 2 or 3, or turn offload_optimizer off"
            )
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile = true with zero_stage = 3: ZeRO-3 gathers weights by hooks inside what would be compiled; "
                "set zero_stage to 0, 1 or 2, or turn compile off"
            )
        return self

    @model_validator(mode="after")
    def _decay_fits(self) -> PretrainingConfig:
        if self.num_decay_steps is None:
            return self
        if self.schedule != "warmup_stable_decay":
            raise ValueError(
                f"num_decay_steps = {self.num_decay_steps} with schedule = {self.schedule!r}, which decays all the "
                "way; leave it out, or use schedule = 'warmup_stable_decay'"
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


def lengths_problem(model: ModelConfig, pretraining: PretrainingConfig) -> str | None:
    """Says which phase is longer than the model has positions for; None where all fit."""
    for index, phase in enumerate(pretraining.phases):
        if phase.max_seq_length > model.max_position_embeddings:
            return (
                f"pretraining.phases.{index}.max_seq_length = {phase.max_seq_length} exceeds "
                f"model.max_position_embeddings = {model.max_position_embeddings}; "
                "raise the latter or shorten the phase"
            )
    return None


def require_lengths_fit(model: ModelConfig, pretraining: PretrainingConfig, recipe_path: str) -> None:
    """Check what only both sections together tell.

    Raises:
        InputError: a phase is longer than the model has positions for.
    """
    if problem := lengths_problem(model, pretraining):
        raise InputError(f"{recipe_path}: {problem}")
