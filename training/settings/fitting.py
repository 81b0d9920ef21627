"""Settings of one run of the fine-tuning loop, whatever it learns; light to import, without torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipelines.contract.bounds import Bounded, Count, Seed, SequenceLength
from pipelines.contract.recipe import OPERATIONAL, Section
from training.settings.pretraining import BatchSize, LearningRate, Rate

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
