"""The heads of a text classifier against each sequence computed on its own."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from training.bert.modeling import initialize_weights
from training.bert.packing import PackedSequences, pack
from training.bert.two_directions import Encoder
from training.finetuning.classifier import NEW_PARTS, BertForSequenceClassification
from training.settings.finetuning import ClassifierHead
from training.settings.model import ModelConfig

VOCAB_SIZE = 50
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LENGTHS, SEGMENT_B_STARTS = [12, 5, 9, 30], [7, 5, 1, 29]
"""The second sequence has no segment B; the first segment of the third is only [CLS]."""


@pytest.fixture(params=["bidirectional", "left_to_right", "two_directions"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return ModelConfig.model_validate({**SIZES, "attention": request.param})


def built(config: ModelConfig, head: ClassifierHead) -> BertForSequenceClassification:
    model = BertForSequenceClassification(config, VOCAB_SIZE, 3, head).eval()
    initialize_weights(model, 0.3, 5)
    return model


def batch() -> tuple[list[PackedSequences], PackedSequences]:
    """Four sequences, each on its own and all in one batch."""
    rows = np.split(np.random.default_rng(2).integers(1, VOCAB_SIZE, sum(LENGTHS)), np.cumsum(LENGTHS)[:-1])
    starts = [np.array([start]) for start in SEGMENT_B_STARTS]
    alone = [pack(row, np.array([len(row)]), start) for row, start in zip(rows, starts, strict=True)]
    return alone, pack(np.concatenate(rows), np.array(LENGTHS), np.array(SEGMENT_B_STARTS))


def states(encoder: Encoder, alone: PackedSequences) -> torch.Tensor:
    hidden: torch.Tensor = encoder(alone)[0]
    return hidden


def test_a_bilstm_reads_each_sequence_in_both_directions(config: ModelConfig) -> None:
    model = built(config, "bilstm")
    sequences, together = batch()
    lstm = model.head.lstm
    for alone, logits in zip(sequences, model(together), strict=True):
        output, _ = lstm(states(model.bert, alone)[:, None])
        half = lstm.hidden_size
        features = torch.cat([output[-1, 0, :half], output[0, 0, half:]])
        torch.testing.assert_close(logits, model.classifier(features), atol=1e-5, rtol=1e-4)


def test_segment_means_are_those_of_each_sequence(config: ModelConfig) -> None:
    model = built(config, "segment_means")
    sequences, together = batch()
    for alone, start, logits in zip(sequences, SEGMENT_B_STARTS, model(together), strict=True):
        hidden = states(model.bert, alone)
        u = hidden[:start].mean(0)
        v = hidden[start:].mean(0) if start < len(hidden) else torch.zeros_like(u)
        features = torch.tanh(model.head.dense(torch.cat([u, v, (u - v).abs(), u * v])))
        torch.testing.assert_close(logits, model.classifier(features), atol=1e-5, rtol=1e-4)


def test_segment_means_keep_the_precision_of_the_encoder(config: ModelConfig) -> None:
    model = built(config, "segment_means").to(torch.bfloat16)
    _, together = batch()
    assert model(together).dtype == torch.bfloat16


@pytest.mark.parametrize("head", get_args(ClassifierHead))
def test_all_but_the_new_parts_comes_from_an_encoder(config: ModelConfig, head: ClassifierHead) -> None:
    model = built(config, head)
    others = [name for name in model.state_dict() if not name.startswith(NEW_PARTS)]
    assert all(name.startswith("bert.") for name in others)
    assert any("pooler" in name for name in others) == (head == "pooler")
