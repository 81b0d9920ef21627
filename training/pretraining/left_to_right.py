"""The left-to-right objective: each token predicts the next one, and attends only to itself and those before it.

The paper compares BERT with it on the same data (section 5.1, "LTR & No NSP"): architecture, input and fine-tuning are
BERT's, only attention and targets differ. Predictions go through the masked-LM head, whose decoder is tied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipelines.statistics.metrics import LOSS, NEXT_TOKEN_METRICS, Metric
from training.data.next_tokens import NextTokens
from training.engine.processes import Processes
from training.pretraining.bert_objective import BertObjective
from training.pretraining.objective import Tally
from training.settings.pretraining import PhaseConfig
from training.stages.pretraining import PretrainingInputs


class LeftToRightObjective(BertObjective):
    """The next token's cross-entropy, over all tokens but the last of each row."""

    lm_loss = LOSS

    def token_metrics(self) -> tuple[Metric, ...]:
        return NEXT_TOKEN_METRICS

    def targets(self, _metadata: Mapping[str, str], _tokens: Sequence[str], _phase: PhaseConfig) -> NextTokens:
        return NextTokens()

    def means(self, tally: Tally) -> dict[str, float]:
        predicted = tally["masked"]
        loss = tally["mlm_loss"] / predicted
        return {
            "loss": loss,
            "next_token_accuracy": tally["mlm_correct"] / predicted,
            "next_token_perplexity": math.exp(min(loss, 700.0)),
        }


def open_left_to_right(inputs: PretrainingInputs, processes: Processes) -> LeftToRightObjective:
    """The objective of a run with `model.attention = "left_to_right"`."""
    return LeftToRightObjective(inputs, processes)
