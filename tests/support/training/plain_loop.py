"""The peer of our fine-tuning: a plain loop over `transformers` and torch.optim.AdamW, padded to each batch's longest.

What has to agree for losses to be comparable is given from outside: the head's first weights, the order of the rows,
the learning rate of each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

NO_DECAY = ("bias", "LayerNorm.weight")


@dataclass(frozen=True)
class PlainLoop:
    """A model, a tokenizer and an optimizer."""

    model: Any
    tokenizer: Any
    optimizer: torch.optim.Optimizer
    max_seq_length: int

    @classmethod
    def begin(
        cls,
        directory: str,
        num_labels: int,
        head: dict[str, torch.Tensor],
        max_seq_length: int,
        adam_eps: float,
        weight_decay: float,
        dropout: float,
    ) -> PlainLoop:
        """Load an encoder, put `head` on it (`classifier.weight`, `classifier.bias`)."""
        model = AutoModelForSequenceClassification.from_pretrained(
            directory,
            num_labels=num_labels,
            problem_type="regression" if num_labels == 1 else "single_label_classification",
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        model.load_state_dict(head, strict=False)
        named = list(model.named_parameters())
        groups = [
            {"params": [p for n, p in named if not n.endswith(NO_DECAY)], "weight_decay": weight_decay},
            {"params": [p for n, p in named if n.endswith(NO_DECAY)], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.0, eps=adam_eps)
        return cls(model.train(), AutoTokenizer.from_pretrained(directory), optimizer, max_seq_length)

    def encode(self, sentences_a: list[str], sentences_b: list[str] | None) -> dict[str, list[list[int]]]:
        """Token ids of all rows, not padded yet."""
        return dict(self.tokenizer(sentences_a, sentences_b, truncation=True, max_length=self.max_seq_length))

    def step(self, encoded: dict[str, list[list[int]]], labels: torch.Tensor, rows: Any, learning_rate: float) -> float:
        """Train one batch; its loss before the update."""
        batch = self._padded(encoded, rows)
        loss = self.model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def outputs(self, encoded: dict[str, list[list[int]]], batch_size: int = 64) -> torch.Tensor:
        """Logits of all rows, in batches of rows as they stand."""
        self.model.train(False)
        count = len(encoded["input_ids"])
        with torch.no_grad():
            logits = [self.model(**self._padded(encoded, rows)).logits for rows in _slices(count, batch_size)]
        self.model.train()
        return torch.cat(logits)

    def _padded(self, encoded: dict[str, list[list[int]]], rows: Any) -> Any:
        return self.tokenizer.pad(
            {name: [values[row] for row in rows] for name, values in encoded.items()}, return_tensors="pt"
        )


def _slices(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def train(
    loop: PlainLoop,
    encoded: dict[str, list[list[int]]],
    labels: np.ndarray,
    orders: list[np.ndarray],
    batch_size: int,
    learning_rate_at_step: Callable[[int], float],
    max_steps: int | None = None,
) -> list[float]:
    """Losses of all steps; `orders` holds one order of the rows per epoch."""
    losses: list[float] = []
    for order in orders:
        for start in range(0, len(order), batch_size):
            if max_steps is not None and len(losses) >= max_steps:
                return losses
            rows = order[start : start + batch_size]
            values = torch.from_numpy(labels[rows])
            values = values.float() if loop.model.config.num_labels == 1 else values.long()
            losses.append(loop.step(encoded, values, rows, learning_rate_at_step(len(losses))))
    return losses
