"""What a trial learns: rows, a head on the encoder, a loss and a score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from pipelines.contract.statistics import FamilyStatistics
from training.bert.packing import PackedSequences
from training.data.ordering import IntArray
from training.finetuning.text import EncodedText
from training.settings.finetuning import FinetuningConfig
from training.settings.model import ModelConfig

Batches = Iterator[tuple[IntArray, PackedSequences, torch.Tensor]]


Forward = Callable[[EncodedText], Batches]
"""Runs the model over all rows of a text, without gradients and dropout, longest rows first; yields the row numbers in
packed order, the packed batch, and the model's output as fp32 on the CPU."""


class TaskInputs(NamedTuple):
    """What a family's opener is given.

    task: a name that `finetuning.tasks` takes. config: the section [finetuning]. folder: that the task's own folder is
    in; None where its files are named one by one. vocabulary_directory: whose tokenizer reads the text.
    """

    task: str
    config: FinetuningConfig
    folder: str | None
    vocabulary_directory: str


class Problem(Protocol):
    """What a trial learns."""

    metric: str
    """Which of the results of `evaluate` chooses the best epoch; more is better."""
    train_text: EncodedText
    head_prefixes: tuple[str, ...]
    """Parameters under these names begin from fresh values."""

    def build_model(self, model: ModelConfig, vocab_size: int) -> nn.Module:
        """A model with the encoder as `bert`; its forward maps PackedSequences to one tensor."""

    def loss_sum(self, output: torch.Tensor, rows: IntArray, packed: PackedSequences, /) -> torch.Tensor:
        """Loss of training rows, summed over its terms; `rows` are in packed order."""

    def num_loss_terms(self, rows: IntArray) -> int:
        """How many terms `loss_sum` adds up for these rows."""

    def evaluate(self, forward: Forward) -> dict[str, float]:
        """Scores on the development rows."""

    def finish(self, forward: Forward, directory: str) -> FamilyStatistics:
        """With the best weights in place: write predictions into a directory; more statistics for the manifest."""

    def huggingface(self) -> tuple[str, dict[str, Any]]:
        """The class of `transformers` that loads the model, and further keys of its config.json."""
