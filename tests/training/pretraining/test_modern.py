"""Full sentences, unmasked and in length bins, from the real Beam jobs, trained on by tokens with dynamic masks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.preprocessing.small_run import RECIPE, run_all, write_corpus
from transformers import AutoModelForMaskedLM

from pipelines.contract.manifest import read_manifest

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
eval_every_steps = 20
log_every_steps = 1
phases = [{ max_seq_length = 64, steps = 30, global_batch_tokens = 600 }]
"""


@pytest.mark.slow
def test_a_modern_recipe_goes_from_text_to_an_encoder(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    recipe = tmp_path / "modern.toml"
    text = RECIPE.format(workspace=tmp_path / "ws", corpus=tmp_path / "corpus")
    modern = '[examples]\nmasking = "dynamic"\nnext_sentence = false\nnum_length_bins = 2\n'
    recipe.write_text(text.replace("[examples]\n", modern).replace("passes = 2", "passes = 1") + MODEL)
    run_all(str(recipe))
    result = subprocess.run(
        [sys.executable, "-m", "training.pretrain", str(recipe)],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "masking dynamic (BERT: static), next_sentence false (BERT: true)" in result.stdout
    assert "NSP" not in result.stdout
    manifest = read_manifest(str(tmp_path / "ws" / "pretraining"))
    assert manifest is not None
    before, after = (manifest.statistics[name] for name in ("heldout_before", "heldout_after"))
    assert after["mlm_loss"] < before["mlm_loss"] - 0.3
    assert "nsp_loss" not in after
    assert 600 - 64 < manifest.statistics["tokens"] / manifest.statistics["steps"] <= 600
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "ws" / "pretraining" / "encoder")
    assert type(model).__name__ == "BertForMaskedLM"
