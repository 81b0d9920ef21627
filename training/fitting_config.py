"""Settings of one run of the fine-tuning loop, whatever it learns; light to import, without torch."""

from __future__ import annotations

from pydantic import Field

from pipelines.recipe import OPERATIONAL, Section
from training.config import Positive, Rate, Seed


class FittingConfig(Section):
    """What every task's fine-tuning has, with the paper's settings for GLUE (section 4.1) as defaults."""

    batch_size: int = Field(default=32, ge=1)
    """Rows of one optimizer step, over all ranks."""
    learning_rate: Positive = 2e-5
    num_train_epochs: int = Field(default=3, ge=1)
    warmup_proportion: Rate = 0.1
    max_seq_length: int = Field(default=128, ge=8, le=65_535)
    early_stopping_epochs: int = Field(default=0, ge=0)
    """Stop after so many epochs in a row without a better score on the development rows; 0 trains all epochs."""
    seed: Seed = 12_345
    log_every_steps: int = Field(default=50, ge=1, json_schema_extra=OPERATIONAL)
