"""Recipe section `[distillation]`; light to import, without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.contract.bounds import Bounded, Count, SequenceLength, UserPath
from pipelines.contract.recipe import ADDED, OPERATIONAL
from training.settings.optimization import BatchSize, LearningRate, LoopConfig, Rate, ScheduleKind

Weight = Annotated[float, Bounded(0.0, 1e6, "a loss below 0 would teach the opposite")]
Layer = Annotated[int, Bounded(0, 999, "layers are counted from 0")]
Temperature = Annotated[
    float, Bounded(0.01, 1_000.0, "logits are divided by it: below one token is left, above all are alike")
]
Epochs = Annotated[float, Bounded(1e-6, 10_000.0, "each epoch reads all examples once")]


class DistillationConfig(LoopConfig):
    """`[distillation]`: a student of half the depth, trained by DistilBERT's recipe (Sanh et al., 2019, section 2).

    Weights, temperature, epochs, rate and warm-up are those of its published training command; the optimizer's other
    settings are BERT's, and the batch is BERT's where DistilBERT had up to 4,000 rows.
    """

    teacher: UserPath | None = None
    """Hugging Face directory of a BERT with its masked-LM head; None is the workspace's own encoder."""
    teacher_layers: tuple[Layer, ...] | None = None
    """Teacher layers, from 0, that initialize the student; None takes every other one: 0, 2, 4 ..."""
    temperature: Temperature = 2.0
    soft_target_weight: Weight = 5.0
    mlm_weight: Weight = 2.0
    cosine_weight: Weight = 1.0
    soft_targets: Literal["all", "masked"] = "all"
    """Tokens at which the student learns the teacher's distribution; `masked` costs a seventh of the logits."""
    max_seq_length: SequenceLength = 128
    """Maximum length of the workspace's examples to train on."""
    global_batch_size: BatchSize = 256
    """Sequences per optimizer step, over all ranks and micro-batches."""
    num_train_epochs: Epochs = 3.0
    learning_rate: LearningRate = 5e-4
    warmup_proportion: Rate = 0.05
    schedule: ScheduleKind = Field(default="linear", json_schema_extra=ADDED)
    """The decay after warm-up: training/optimizers/schedule.py has the formulas."""

    eval_every_steps: Count = Field(default=1_000, json_schema_extra=OPERATIONAL)
    log_every_steps: Count = Field(default=50, json_schema_extra=OPERATIONAL)

    @model_validator(mode="after")
    def _something_is_learnt(self) -> DistillationConfig:
        if not self.soft_target_weight + self.mlm_weight + self.cosine_weight:
            raise ValueError("soft_target_weight, mlm_weight and cosine_weight are all 0; raise one")
        self.refuse_pretraining_optimizer("distil")
        return self

    @model_validator(mode="after")
    def _layers_ascend(self) -> DistillationConfig:
        layers = self.teacher_layers
        if layers is not None and (not layers or layers[0] < 0 or sorted(set(layers)) != list(layers)):
            raise ValueError(f"teacher_layers = {list(layers)} must name at least one layer, in ascending order from 0")
        return self
