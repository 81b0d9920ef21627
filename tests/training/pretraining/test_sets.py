"""Two phases of one run that read two sets of examples with other sources and masks, from text by the real jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.preprocessing.mixed_corpus import LETTERS, RECIPE, write_sources
from tests.support.preprocessing.small_run import run_all
from tests.support.statistics import statistics_with

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, read_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.statistics.preprocessing import ExamplesStatistics, ExamplesText
from training.engine.processes import Processes
from training.pretraining.bert_objective import BertObjective
from training.pretraining.row_feed import RowFeed
from training.stages.pretraining import pretraining_inputs
from training.stages.sections import PretrainingSections

pytestmark = pytest.mark.timeout(300)

MODEL = """
[model]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 64
[pretraining]
learning_rate = 3e-3
num_warmup_steps = 2
eval_every_steps = 10
log_every_steps = 1
[[pretraining.phases]]
max_seq_length = 32
steps = 4
global_batch_size = 8
[[pretraining.phases]]
max_seq_length = 48
steps = 6
global_batch_size = 64
examples = "expert"
masked_lm_prob = 0.3
"""


@pytest.mark.slow
def test_phases_read_their_sets(tmp_path: Path) -> None:
    workspace, path = tmp_path / "workspace", tmp_path / "sets.toml"
    path.write_text(RECIPE.format(workspace=workspace, sources=write_sources(tmp_path)) + MODEL)
    run_all(str(path))
    # Files of a set that no phase reads are not verified.
    (workspace / "examples" / "plain" / "length32" / "train-00001-of-00003.arrow").unlink()
    result = subprocess.run(
        [sys.executable, "-m", "training.pretrain", str(path)],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "phases.1.masked_lm_prob 0.3 (BERT: 0.15), phases.1.masking dynamic_whole_word" in result.stdout
    manifest = read_manifest(str(workspace / "pretraining"))
    assert manifest is not None
    assert [phase.get("examples") for phase in manifest.config["pretraining"]["phases"]] == [None, "expert"]
    lines = [json.loads(line) for line in (workspace / "pretraining" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "tokens_per_second" in line] == list(range(1, 11))
    _check_batches(str(path))
    for override, message in (
        ("pretraining.phases.1.examples=experts", "max_seq_length = 48 of the set 'experts', but .* expert/48"),
        ("pretraining.phases.1.max_seq_length=32", "max_seq_length = 32 of the set 'expert', but"),
    ):
        with pytest.raises(InputError, match=message):
            pretraining_inputs(PretrainingSections.of(read_recipe(str(path), [override])))


def _check_batches(path: str) -> None:
    """Steps of the second phase hold tokens of two sources, with masks of complete words drawn in training."""
    inputs = pretraining_inputs(PretrainingSections.of(read_recipe(path)))
    processes = Processes(0, 1, torch.device("cpu"))
    feed = RowFeed(BertObjective(inputs, processes), processes)
    tokens = Path(inputs.vocabulary_directory, "vocab.txt").read_text().splitlines()
    first, second = (feed.reader(phase).step_at(0).micro_batches[0] for phase in (0, 1))
    for batch, sources, share in ((first, set(LETTERS), 0.15), (second, {"law", "novels"}, 0.3)):
        ids = batch.sequences.input_ids_T.numpy().copy()
        masked = batch.masked_lm_positions_M.numpy()
        ids[masked] = batch.masked_lm_ids_M.numpy()
        letters = {tokens[token].removeprefix("##")[0] for token in ids}
        assert {name for name in LETTERS if letters & set(LETTERS[name])} == sources
        assert len(masked) / len(ids) == pytest.approx(share, rel=0.1)
    joins = np.array([tokens[token].startswith("##") for token in ids])[1:]
    is_masked = np.zeros(len(ids), np.bool_)
    is_masked[masked] = True
    assert joins.sum() > 100
    assert (is_masked[1:] == is_masked[:-1])[joins].all()
    again = feed.reader(1).step_at(0).micro_batches[0].masked_lm_positions_M.numpy()
    next_epoch = feed.reader(1).step_at(feed.examples("train", inputs.pretraining.phases[1]).num_rows)
    assert again.tolist() == masked.tolist() != next_epoch.micro_batches[0].masked_lm_positions_M.tolist()


@pytest.mark.parametrize(
    ("pieces_per_word", "masking", "is_warned"),
    [(1.001, "dynamic_whole_word", True), (1.001, "dynamic", False), (1.3, "dynamic_whole_word", False)],
)
def test_whole_words_of_single_pieces_are_warned_of(pieces_per_word: float, masking: str, is_warned: bool) -> None:
    text = statistics_with(ExamplesText, pieces_per_word=pieces_per_word)
    statistics = statistics_with(ExamplesStatistics, text=text)
    inputs = SimpleNamespace(examples=StageKey("examples", 1, {}, {}).manifest([], statistics, "test"))
    values: Any = {"inputs": inputs, "settings": SimpleNamespace(masking=masking), "_deviations": "none", "lineage": ()}
    introduction = BertObjective.introduction(SimpleNamespace(**values))  # type: ignore[arg-type]
    warning = "WARNING: pretraining.masking = 'dynamic_whole_word' has no effect on whole words: they have 1.00 pieces"
    assert (warning in introduction) == is_warned
