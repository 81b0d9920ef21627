"""What is shown about a run: FLOPs by the formula, and alarms."""

from __future__ import annotations

import math

import pytest
import torch

from training.alarms.bert_rules import LM_STEPS, NSP_STEPS, BertAlarms
from training.bert.heads import BertForPreTraining
from training.bert.sizes import step_flops
from training.pretraining.throughput import measured_peak_flops
from training.settings.model import ModelConfig


def test_flops_count_two_per_weight_and_token_and_three_passes() -> None:
    """Against the sizes of the model's own matrices: 2 forward, 4 backward."""
    config = ModelConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80)
    model = BertForPreTraining(config, vocab_size=500)
    sizes = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if "encoder" in name and parameter.dim() == 2
    }
    matrices, last = sum(sizes.values()), "encoder.layer.2."
    after_attention = sum(size for name, size in sizes.items() if last in name and ".attention.self." not in name)
    lengths, masked = [7, 20, 11], 6
    attention = sum(3 * config.num_hidden_layers * 2 * 2 * length * length * 32 for length in lengths)
    head = 6 * masked * (32 * 32 + 32 * 500)
    squares = sum(length**2 for length in lengths)
    found = step_flops(config, 500, sum(lengths), squares, masked, reads_all_tokens=True)
    assert found == 6 * matrices * sum(lengths) + attention + head
    # After attention the last layer computes only the masked tokens.
    unread = 6 * after_attention * (sum(lengths) - masked)
    assert step_flops(config, 500, sum(lengths), squares, masked) == found - unread


def test_flops_of_bert_large_equal_the_published_count() -> None:
    """302 M encoder weights; a sequence of 512 tokens and 80 predictions takes 1.02e12 operations."""
    large = ModelConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    flops = step_flops(large, 30_522, 512, 512 * 512, 80, reads_all_tokens=True)
    assert flops == 6 * 301_989_888 * 512 + 12 * 24 * 1024 * 512**2 + 6 * 80 * (1024**2 + 1024 * 30_522)
    assert flops == pytest.approx(1.02e12, rel=0.01)


def test_the_measured_peak_is_a_rate() -> None:
    assert 1e8 < measured_peak_flops(torch.device("cpu"), torch.float32) < 1e14


def test_nsp_alarm_comes_once_after_its_steps_and_again_after_learning() -> None:
    alarms = BertAlarms(num_warmup_steps=100)
    lines = [(step, alarms.observe(step, {"nsp_loss": 0.6935})) for step in range(0, NSP_STEPS + 1_000, 100)]
    given = [(step, words) for step, words in lines if words]
    assert [step for step, _ in given] == [NSP_STEPS + 200]
    assert given[0][1][0].startswith("NSP loss has stayed at 0.69 for 2,000 steps")
    assert alarms.observe(4_000, {"nsp_loss": 0.5}) == []
    assert alarms.observe(5_000, {"nsp_loss": math.log(2)}) == []
    assert alarms.observe(5_000 + NSP_STEPS, {"nsp_loss": math.log(2)}) != []


def test_mlm_alarm_needs_a_high_and_flat_loss() -> None:
    flat, low = BertAlarms(0), BertAlarms(0)
    steps = range(0, LM_STEPS + 2_000, 500)
    assert sum(bool(flat.observe(step, {"mlm_loss": 7.1})) for step in steps) == 1
    assert not any(low.observe(step, {"mlm_loss": 2.0}) for step in steps)
    falling = BertAlarms(0)
    assert not any(falling.observe(step, {"mlm_loss": 9.0 - step / 5_000}) for step in steps)


def test_pooler_and_speed_alarms() -> None:
    alarms = BertAlarms(0)
    assert [bool(alarms.observe(step, {"pooler_gradient": 0.0})) for step in range(4)] == [False, False, True, False]
    speeds = [1_000.0] * 10 + [400.0] * 4 + [1_000.0] * 2
    given = [
        alarms.observe(step, {"tokens_per_second": speed, "pooler_gradient": 0.1}) for step, speed in enumerate(speeds)
    ]
    assert [index for index, words in enumerate(given) if words] == [12]
    assert "1,000 were usual" in given[12][0]


def test_heldout_alarm() -> None:
    alarms = BertAlarms(0)
    given = [alarms.observe_heldout({"mlm_loss": loss}) for loss in (3.0, 2.5, 2.4, 2.5, 2.6, 2.7, 2.8)]
    assert [index for index, words in enumerate(given) if words] == [5]
