"""Metrics of training objectives: name, label, unit and direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HELDOUT_PREFIX = "heldout_"
"""Begins the name of a metric in metrics.jsonl where it is that of held-out examples."""

Unit = Literal["nats", "share", "number"]


@dataclass(frozen=True)
class Metric:
    """One metric of an objective, as its stage's manifest states it.

    name: in statistics and metrics.jsonl. label: for people. unit: a loss in nats, a share of 1, or a plain number.
    """

    name: str
    label: str
    unit: Unit
    more_is_better: bool = False


LOSS = Metric("loss", "loss", "nats")
"""What training minimizes; every objective has it."""

MLM_LOSS = Metric("mlm_loss", "MLM loss", "nats")

MINIMAL_PAIRS = Metric("minimal_pairs_accuracy", "accuracy on minimal pairs", "share", more_is_better=True)
"""Measured where `pretraining.minimal_pairs` is set."""

BERT_METRICS = (
    Metric("mlm_accuracy", "MLM accuracy", "share", more_is_better=True),
    Metric("nsp_accuracy", "NSP accuracy", "share", more_is_better=True),
    Metric("mlm_perplexity", "MLM perplexity", "number"),
    LOSS,
    MLM_LOSS,
    Metric("nsp_loss", "NSP loss", "nats"),
)
"""The first of an objective's metrics is the one that its models are judged by."""

MASKED_LM_METRICS = tuple(metric for metric in BERT_METRICS if not metric.name.startswith("nsp_"))

NEXT_TOKEN_METRICS = (
    Metric("next_token_accuracy", "next-token accuracy", "share", more_is_better=True),
    Metric("next_token_perplexity", "next-token perplexity", "number"),
    LOSS,
)
"""Of a left-to-right model; its loss is that of the next token."""
