"""Recipe section `[finetuning.sweep]`: the grid and the seeds; light to import, without torch."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator

from pipelines.contract.bounds import Bounded, Processes
from pipelines.contract.recipe import OPERATIONAL, Section
from training.settings.optimization import BatchSize, Epochs, FittingConfig, LearningRate

Seeds = Annotated[int, Bounded(1, 10_000, "each is a training run of its own")]
Restarts = Annotated[int, Bounded(0, 10_000, "each is a training run of its own")]

GRIDS: dict[str, tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...]]] = {
    "paper": ((32,), (5e-5, 4e-5, 3e-5, 2e-5), (3,)),
    "appendix": ((16, 32), (5e-5, 3e-5, 2e-5), (2, 3, 4)),
    "none": ((), (), ()),
}
"""Batch sizes, learning rates and epochs: section 4.1 of the paper, and its appendix A.3."""

SMALL_TASK_ROWS = 10_000
"""Tasks with fewer training rows are small: CoLA, MRPC, STS-B, RTE and WNLI of GLUE's."""


class Cell(NamedTuple):
    """One point of the grid."""

    batch_size: int
    learning_rate: float
    num_train_epochs: int

    @property
    def name(self) -> str:
        return f"batch{self.batch_size}-lr{self.learning_rate!r}-epochs{self.num_train_epochs}"


class SweepConfig(Section):
    """`[finetuning.sweep]`: a grid of settings, each tried with one or more seeds."""

    grid: Literal["paper", "appendix", "none"] = "paper"
    """`paper`: section 4.1, four trials; `appendix`: A.3, eighteen; `none`: the task's own settings, for seeds."""
    batch_sizes: tuple[BatchSize, ...] = ()
    """These and the next two override the grid's own."""
    learning_rates: tuple[LearningRate, ...] = ()
    num_train_epochs: tuple[Epochs, ...] = ()
    seeds: Seeds = 1
    """Trials of each point: the task's seed and its successors."""
    small_task_restarts: Restarts = 0
    """Further seeds for GLUE's tasks with fewer than 10,000 training rows. The paper ran several for BERT-large, from
    the same encoder with different data order and classifier initialization (section 4.1)."""
    side_by_side: Processes = Field(default=0, json_schema_extra=OPERATIONAL)
    """Concurrent trials, each in one process; 0 means one per GPU or, without GPUs, one per four cores."""
    keep_models: Literal["best", "all"] = Field(default="best", json_schema_extra=OPERATIONAL)
    """`best` keeps the weights of each task's best trial only: a BERT-base model takes 440 MB."""

    @field_validator("batch_sizes", "learning_rates", "num_train_epochs")
    @classmethod
    def _nothing_twice(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) < len(values):
            raise ValueError("names a value twice; give each once, and use seeds for repetitions")
        return values

    def cells(self, own: FittingConfig) -> list[Cell]:
        """The points of the grid, in the order of the lists; `own` are the task's settings outside the sweep."""
        batch_sizes, learning_rates, epochs = GRIDS[self.grid]
        return [
            Cell(*values)
            for values in product(
                self.batch_sizes or batch_sizes or (own.batch_size,),
                self.learning_rates or learning_rates or (own.learning_rate,),
                self.num_train_epochs or epochs or (own.num_train_epochs,),
            )
        ]

    def num_seeds(self, is_small: bool) -> int:
        """Trials of each point for a small or other task."""
        return self.seeds + (self.small_task_restarts if is_small else 0)
