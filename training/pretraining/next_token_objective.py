"""Objectives whose tokens predict the next one, and attend only to themselves and those before them.

The paper compares BERT with a left-to-right model on the same data (section 5.1, "LTR & No NSP"): architecture, input
and fine-tuning are BERT's, only attention and targets differ. Predictions go through the masked-LM head, whose decoder
is tied. With two directions, two such models are trained side by side.
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


class NextTokenObjective(BertObjective):
    """The next token's cross-entropy, over all tokens but the last of each row.

    Two encoders learn from the sum of their losses, so that each has the gradients of its own; metrics are means over
    the predictions of both.
    """

    lm_loss = LOSS

    def token_metrics(self) -> tuple[Metric, ...]:
        return NEXT_TOKEN_METRICS

    def targets(self, _metadata: Mapping[str, str], _tokens: Sequence[str], _phase: PhaseConfig) -> NextTokens:
        return NextTokens()

    def means(self, tally: Tally) -> dict[str, float]:
        predictions = self.model.num_encoders * tally["masked"]
        loss = tally["mlm_loss"] / predictions
        return {
            "loss": loss,
            "next_token_accuracy": tally["mlm_correct"] / predictions,
            "next_token_perplexity": math.exp(min(loss, 700.0)),
        }


def open_next_token(inputs: PretrainingInputs, processes: Processes) -> NextTokenObjective:
    """The objective of a run whose `model.attention` is not `bidirectional`."""
    return NextTokenObjective(inputs, processes)
