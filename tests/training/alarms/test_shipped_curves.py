"""The curves that come with the project, and a fresh run on the text that one was made of."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support import REPOSITORY
from tests.support.training.synthetic_run import environment

from pipelines.contract.recipe import read_recipe
from pipelines.settings.examples import ExamplesConfig
from training.alarms.reference_curve import read_reference
from training.settings.model import ModelConfig
from training.settings.pretraining import PretrainingConfig

RECIPE = str(REPOSITORY / "flows" / "recipes" / "reference-curves.toml")
CURVE = read_reference("tiny-novels")
STEPS = 300
TOLERANCE = 0.02
"""Of the loss; machines round differently, and 300 steps multiply it."""


def test_the_recipe_is_that_of_the_curve() -> None:
    recipe = read_recipe(RECIPE, [])
    assert recipe.section("model", ModelConfig).identity() == CURVE.settings["model"]
    assert recipe.section("pretraining", PretrainingConfig).identity() == CURVE.settings["pretraining"]
    assert recipe.section("examples", ExamplesConfig).identity() == CURVE.settings["examples"]


@pytest.mark.slow
@pytest.mark.timeout(1_500)
def test_the_first_steps_of_a_fresh_run_follow_the_curve(shared_data: Path, tmp_path: Path) -> None:
    """The complete schedule, ended by a signal: a shorter run would have another learning rate."""
    novels = json.dumps([str(shared_data / "corpora" / "novels100" / "*.txt")])
    workspace = str(tmp_path / "ws")
    settings = ("--workspace", workspace, "--set", f"documents.sources.0.inputs={novels}")
    for job in ("shard_corpus", "train_vocabulary", "build_examples"):
        command = [sys.executable, "-m", f"pipelines.{job}", RECIPE, *settings]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    path = Path(workspace, "pretraining.building", "metrics.jsonl")
    command = [sys.executable, "-m", "training.pretrain", RECIPE, *settings]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as training:
        while training.poll() is None and STEPS not in losses(path):
            time.sleep(0.5)
        training.send_signal(signal.SIGTERM)
        said = training.communicate(timeout=120)[0]
    assert os.path.isdir(Path(workspace, "pretraining.building")), said
    found = {step: each for step, each in losses(path).items() if step <= STEPS}
    assert len(found) == STEPS // 20
    for step, (tokens, loss) in found.items():
        expected = CURVE.at("mlm_loss", tokens)
        assert expected is not None, step
        assert loss == pytest.approx(expected, rel=TOLERANCE), step


def losses(path: Path) -> dict[int, tuple[float, float]]:
    """Tokens and masked-LM loss by step, of the lines that are written completely."""
    if not path.is_file():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return {int(each["step"]): (each["tokens"], each["mlm_loss"]) for each in records if "mlm_loss" in each}
