"""Recipe sections of training: `[model]`, `[pretraining]` and `[finetuning]`; light to import, without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.recipe import OPERATIONAL, InputError, Section

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Precision = Literal["auto", "fp32", "bf16"]

GLUE_TASK_NAMES = ("cola", "sst-2", "mrpc", "sts-b", "qqp", "mnli", "qnli", "rte", "wnli")
WORD_ORDER = "word-order"


class ModelConfig(Section):
    """`[model]`: the encoder's architecture; its vocabulary's size comes from the vocabulary stage.

    The defaults are BERT-base of the paper, section 3; names are those of the released code's bert_config.json.
    """

    hidden_size: int = Field(default=768, ge=1)
    num_hidden_layers: int = Field(default=12, ge=1)
    num_attention_heads: int = Field(default=12, ge=1)
    intermediate_size: int = Field(default=3072, ge=1)
    max_position_embeddings: int = Field(default=512, ge=8, le=65_535)
    type_vocab_size: int = Field(default=2, ge=2)
    hidden_act: Literal["gelu_new", "gelu"] = "gelu_new"
    """`gelu_new` is the tanh form of the released code since February 2019, `gelu` the exact one."""
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    layer_norm_eps: Positive = 1e-12
    initializer_range: Positive = 0.02

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

    max_seq_length: int = Field(ge=8, le=65_535)
    steps: int = Field(ge=1)
    global_batch_size: int = Field(default=256, ge=1)
    """Sequences per optimizer step, over all ranks and micro-batches."""


class OptimizerConfig(Section):
    """What pre-training and fine-tuning share: BERT's Adam with the paper's settings, clipping, precision."""

    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    adam_beta1: Rate = 0.9
    adam_beta2: Rate = 0.999
    adam_eps: Positive = 1e-6
    adam_bias_correction: bool = False
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Gradients are clipped to this global norm; 0 turns clipping off."""
    precision: Precision = "auto"
    """`auto` is bf16 on a GPU that has it, fp32 elsewhere."""


class PretrainingConfig(OptimizerConfig):
    """`[pretraining]`: objective, optimizer and schedule; the defaults are those of the paper, appendix A.2."""

    seed: Seed = 12_345
    phases: tuple[PhaseConfig, ...] = (
        PhaseConfig(max_seq_length=128, steps=900_000, global_batch_size=256),
        PhaseConfig(max_seq_length=512, steps=100_000, global_batch_size=256),
    )
    learning_rate: Positive = 1e-4
    num_warmup_steps: int = Field(default=10_000, ge=0)
    zero_stage: int = Field(default=2, ge=0, le=3)

    micro_batch_size: int | None = Field(default=None, ge=1, json_schema_extra=OPERATIONAL)
    """Sequences a rank computes at once; None computes its whole share of the global batch without accumulation."""
    ranks: int = Field(default=0, ge=0, json_schema_extra=OPERATIONAL)
    """Processes of one node; 0 means one per GPU, or two where there is none."""
    eval_every_steps: int = Field(default=10_000, ge=1, json_schema_extra=OPERATIONAL)
    eval_examples: int = Field(default=2_048, ge=1, json_schema_extra=OPERATIONAL)
    """Held-out examples that one evaluation reads at most."""
    checkpoint_every_steps: int = Field(default=1_000, ge=1, json_schema_extra=OPERATIONAL)
    keep_checkpoints: int = Field(default=2, ge=1, json_schema_extra=OPERATIONAL)
    log_every_steps: int = Field(default=100, ge=1, json_schema_extra=OPERATIONAL)

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

    @property
    def num_train_steps(self) -> int:
        """Optimizer steps of all phases together."""
        return sum(phase.steps for phase in self.phases)


def require_lengths_fit(model: ModelConfig, pretraining: PretrainingConfig, recipe_path: str) -> None:
    """Check what only both sections together tell.

    Raises:
        InputError: a phase is longer than the model has positions for.
    """
    for index, phase in enumerate(pretraining.phases):
        if phase.max_seq_length > model.max_position_embeddings:
            raise InputError(
                f"{recipe_path}: pretraining.phases.{index}.max_seq_length = {phase.max_seq_length} exceeds "
                f"model.max_position_embeddings = {model.max_position_embeddings}; "
                "raise the latter or shorten the phase"
            )


class WordOrderConfig(Section):
    """`[finetuning.word_order]`: the demonstration task, made from held-out documents in CoLA's own form."""

    max_train_examples: int = Field(default=4_000, ge=2)
    max_dev_examples: int = Field(default=1_000, ge=2)
    min_words: int = Field(default=6, ge=3)
    max_words: int = Field(default=40, ge=3)
    damaged_words: int = Field(default=5, ge=2)
    """Length of the run of neighbouring words whose order is changed."""
    seed: Seed = 12_345

    @model_validator(mode="after")
    def _words_fit(self) -> WordOrderConfig:
        if not self.damaged_words <= self.min_words <= self.max_words:
            raise ValueError(
                f"damaged_words = {self.damaged_words}, min_words = {self.min_words}, max_words = {self.max_words} "
                "must not decrease in this order"
            )
        return self


class FinetuningConfig(OptimizerConfig):
    """`[finetuning]`: which tasks, and the paper's settings for them (section 4.1)."""

    glue_dir: str | None = None
    """Folder with GLUE's own sub-folders (CoLA, SST-2, MRPC ...)."""
    tasks: tuple[str, ...] = ()
    batch_size: int = Field(default=32, ge=1)
    learning_rate: Positive = 2e-5
    num_train_epochs: int = Field(default=3, ge=1)
    warmup_proportion: Rate = 0.1
    max_seq_length: int = Field(default=128, ge=8, le=65_535)
    seed: Seed = 12_345
    compare_with_random: bool = False
    """Also train each task from random weights, to show what pre-training bought."""
    word_order: WordOrderConfig = WordOrderConfig()
    log_every_steps: int = Field(default=50, ge=1, json_schema_extra=OPERATIONAL)

    @model_validator(mode="after")
    def _tasks_known(self) -> FinetuningConfig:
        valid = (*GLUE_TASK_NAMES, WORD_ORDER)
        for task in self.tasks:
            if task not in valid:
                raise ValueError(f"tasks names {task!r}; valid names: {', '.join(valid)}")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks = {list(self.tasks)} names a task twice")
        glue_tasks = [task for task in self.tasks if task != WORD_ORDER]
        if glue_tasks and self.glue_dir is None:
            raise ValueError(
                f"tasks asks for {', '.join(glue_tasks)} but glue_dir is not set; add "
                "--set finetuning.glue_dir=<folder that holds CoLA, RTE ...>"
            )
        return self
