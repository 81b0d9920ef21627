"""Interface of a fine-tuning problem: rows, a head on the encoder, a loss and a score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from pipelines.statistics.preprocessing import TextFit
from pipelines.statistics.training import FamilyStatistics
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
    """Input of a family's opener.

    task: a valid name of `finetuning.tasks`. config: the section [finetuning]. folder: parent of the task's folder;
    None if its files are listed individually. vocabulary_directory: source of the tokenizer.
    """

    task: str
    config: FinetuningConfig
    folder: str | None
    vocabulary_directory: str


class Problem(Protocol):
    """A fine-tuning problem."""

    metric: str
    """The result of `evaluate` that chooses the best epoch; higher is better."""
    train_text: EncodedText
    coverage: TextFit
    """How well the vocabulary fits the training and development texts."""
    head_prefixes: tuple[str, ...]
    """Prefixes of parameters with fresh initial values."""

    def build_model(self, model: ModelConfig, vocab_size: int) -> nn.Module:
        """A model with the encoder as `bert`; its forward maps PackedSequences to one tensor."""

    def loss_sum(self, output: torch.Tensor, rows: IntArray, packed: PackedSequences, /) -> torch.Tensor:
        """Loss of training rows, summed over its terms; `rows` are in packed order."""

    def num_loss_terms(self, rows: IntArray) -> float:
        """Number of terms in `loss_sum` for these rows, or the sum of their weights."""

    def evaluate(self, forward: Forward) -> dict[str, float]:
        """Scores on the development rows."""

    def finish(self, forward: Forward, directory: str) -> FamilyStatistics:
        """Write predictions of the best weights to a directory; returns further statistics for the manifest."""

    def huggingface(self) -> tuple[str, dict[str, Any]]:
        """The class of `transformers` that loads the model, and further keys of its config.json."""
