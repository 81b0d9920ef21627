"""A model is looked at before its stage is complete: finite, and better than word frequencies."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.support import REPOSITORY

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from training.alarms.bert_rules import NSP_PERFECT_OBSERVATIONS, BertAlarms
from training.data.arrow_examples import ArrowExamples
from training.pretraining.unigram_baseline import baseline_warning, unigram_baseline
from training.resuming.result_checks import require_finite, result_fault


def test_what_is_not_finite_is_refused_in_one_line() -> None:
    sound = {"bert.a": torch.ones(3, 4), "steps": torch.tensor([1])}
    require_finite(sound, {"loss": 2.0, "mlm_accuracy": 0.0}, "recipe.toml")
    require_finite(sound, {}, "recipe.toml")
    # The sum overflows, the weights do not.
    require_finite({"bert.a": torch.full((4,), 3e38)}, {}, "recipe.toml")
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(InputError, match=r"recipe\.toml: .* loss is (nan|-?inf); .*lower learning_rate") as caught:
            require_finite(sound, {"mlm_accuracy": 0.1, "loss": value}, "recipe.toml")
        assert "\n" not in str(caught.value)
        broken = torch.ones(3, 4)
        broken[1, 2] = value
        assert result_fault({**sound, "bert.b": broken}, {}) == "1 of 12 weights of bert.b are not finite"
    # Two infinities whose sum is no number.
    assert result_fault({"b": torch.tensor([math.inf, -math.inf])}, {}) == "2 of 2 weights of b are not finite"


def test_unigram_scores_equal_a_plain_count(make_workspace: Callable[[str], Any]) -> None:
    directory = f"{make_workspace('unigram').path}/examples"
    manifest = read_manifest(directory)
    assert manifest is not None
    train, heldout = (ArrowExamples(directory, manifest, split, 32) for split in ("train", "heldout"))

    def tokens_of(examples: ArrowExamples, only_masked: bool, most: int) -> list[int]:
        found: list[int] = []
        for number in range(min(most, examples.num_rows)):
            row = examples.read(((number, number + 1),))
            ids, labels = row.input_ids.values.tolist(), row.masked_lm_ids.values.tolist()
            for place, label in zip(row.masked_lm_positions.values.tolist(), labels, strict=True):
                ids[place] = label
            found += labels if only_masked else ids
        return found

    counts = Counter(tokens_of(train, False, train.num_rows))
    wanted = tokens_of(heldout, True, 40)
    vocabulary = range(1 + max(*counts, *wanted))
    total = sum(max(counts[token], 1) for token in vocabulary)
    expected = -sum(math.log(max(counts[token], 1) / total) for token in wanted) / len(wanted)
    baseline = unigram_baseline(train, heldout, 40)
    assert baseline is not None
    assert baseline.loss == pytest.approx(expected, rel=1e-12)
    assert baseline.accuracy == Counter(wanted).most_common(1)[0][1] / len(wanted)
    assert unigram_baseline(train, heldout, 0) is None
    assert baseline_warning(expected - 0.01, expected) is None
    assert baseline_warning(5.0, None) is None
    line = baseline_warning(expected, expected)
    assert line is not None
    assert "word" in line
    assert "\n" not in line


def test_nsp_alarm_for_labels_that_are_all_equal() -> None:
    alarms = BertAlarms(num_warmup_steps=0)
    given = [alarms.observe(step, {"nsp_accuracy": 1.0, "nsp_loss": 0.0}) for step in range(6)]
    assert [bool(words) for words in given] == [step == NSP_PERFECT_OBSERVATIONS - 1 for step in range(6)]
    assert "random_next_share" in given[NSP_PERFECT_OBSERVATIONS - 1][0]
    learning = BertAlarms(num_warmup_steps=0)
    for step in range(20):
        assert learning.observe(step, {"nsp_accuracy": 1.0 if step % 3 else 0.99}) == []


DIVERGING = """
import math, sys
import torch
import training.engine.training_engine, training.pretraining.run
from pipelines.contract.errors import exit_code_of
from training.pretrain import main

whole = training.engine.training_engine.TrainingEngine.full_precision_state

def broken(engine):
    state = whole(engine)
    next(iter(state.values())).view(-1)[7] = math.nan
    return state

training.engine.training_engine.TrainingEngine.full_precision_state = broken
sys.exit(exit_code_of(main))
"""


@pytest.mark.slow
def test_a_diverged_run_is_not_complete(make_workspace: Callable[[str], Any]) -> None:
    """One weight that is no number, found at the end of a run whose losses were all finite."""
    workspace = make_workspace("diverged")
    phases = "pretraining.phases=[{max_seq_length = 32, steps = 3, global_batch_size = 16}]"
    command = [sys.executable, "-c", DIVERGING, workspace.recipe, "--workspace", workspace.path, "--set", phases]
    result = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "the trained model is unusable: 1 of " in line
    assert "lower learning_rate" in line
    assert "Traceback" not in result.stderr
    assert read_manifest(f"{workspace.path}/pretraining") is None
