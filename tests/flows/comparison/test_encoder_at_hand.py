"""A study of fine-tuning an encoder that exists: nothing is preprocessed or pre-trained, and no corpus is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.training.tiny_models import write_tiny_encoder

from flows.comparison.execution import require_runs, run_study
from flows.comparison.page import study_page
from flows.comparison.study_file import Study, read_study
from flows.comparison.summary import study_drawing
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from pipelines.statistics.training import TrialStatistics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RECIPE = """
[run]
workspace = "unused"
[finetuning]
encoder = "{encoder}"
max_seq_length = 16
num_train_epochs = 1
batch_size = 4
[[finetuning.tables]]
name = "length"
train_file = "{folder}/rows.csv"
dev_file = "{folder}/rows.csv"
"""
STUDY = """
[study]
name = "rates"
base = "recipe.toml"
workspace = "{folder}/ws"
seeds = [1, 2]
[[study.variants]]
name = "slow"
overrides = ["finetuning.learning_rate=1e-9"]
[[study.variants]]
name = "fast"
overrides = ["finetuning.learning_rate=1e-2"]
"""


def written(folder: Path) -> Study:
    rows = ["it returns the list,short", "the first item of the number of items in the list,long"] * 8
    (folder / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (folder / "recipe.toml").write_text(RECIPE.format(encoder=folder / "encoder", folder=folder))
    (folder / "study.toml").write_text(STUDY.format(folder=folder))
    return read_study(str(folder / "study.toml"))


def test_nothing_is_built_before_fine_tuning(tmp_path: Path) -> None:
    study, lines = written(tmp_path), list[str]()
    write_tiny_encoder(str(tmp_path / "encoder"))

    comparison = run_study(study, lines.append, lambda _: {}, lambda _, train: train())
    assert [result.problem for result in comparison.results] == [None] * 4
    assert not (tmp_path / "ws" / "stages").exists()
    scores = {}
    for result in comparison.results:
        trial = tmp_path / "ws" / "runs" / result.run.variant / str(result.run.seed) / "finetuning/length/pretrained"
        manifest = read_manifest(str(trial))
        assert manifest is not None
        scores[result.run.variant, result.run.seed] = manifest.statistics_as(TrialStatistics).score
        assert result.values == {"length": scores[result.run.variant, result.run.seed]}
        assert (result.tokens, result.flops, result.curves) == (0, 0.0, {})
        assert result.seconds is not None
        assert result.seconds > 0
    cell = comparison.cells["length"]["fast"]
    differences = [scores["fast", seed] - scores["slow", seed] for seed in (1, 2)]
    assert cell.difference == pytest.approx(sum(differences) / 2)
    assert study_drawing(comparison) == ""
    assert "where nothing is pre-trained, of fine-tuning" in study_page(study, comparison)

    lines.clear()
    again = run_study(study, lines.append, lambda _: {}, lambda _, train: train())
    assert json.dumps(again.results[0].values) == json.dumps(comparison.results[0].values)
    assert len([line for line in lines if line.endswith("finetuning: complete")]) == 4


def test_an_encoder_that_is_missing_is_named_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}/encoder"):
        require_runs(written(tmp_path))
    assert not (tmp_path / "ws").exists()
