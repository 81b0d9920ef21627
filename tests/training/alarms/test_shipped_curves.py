"""The curves that come with the project, and a fresh run on the text that one was made of."""

from __future__ import annotations

import json
import os
import shutil
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
OWN_SETTINGS = {
    "tiny": ("model.size=tiny",),
    "mini": ("model.size=mini",),
    "small": ("model.size=small", "pretraining.learning_rate=2e-3"),
}
"""What each curve's run has on top of the recipe."""
STEPS = {"tiny": 300, "mini": 300, "small": 60}
"""300 steps of small take ten minutes."""
TOLERANCES = {"mlm_loss": 0.02, "nsp_loss": 0.1}
"""Machines round differently, and 300 steps multiply it; a line has 6,000 masked tokens, but only 640 pairs."""


@pytest.mark.parametrize("size", OWN_SETTINGS)
def test_the_recipe_is_that_of_the_curve(size: str) -> None:
    recipe, curve = read_recipe(RECIPE, [*OWN_SETTINGS[size]]), read_reference(f"{size}-novels")
    assert recipe.section("model", ModelConfig).identity() == curve.settings["model"]
    assert recipe.section("pretraining", PretrainingConfig).identity() == curve.settings["pretraining"]
    assert recipe.section("examples", ExamplesConfig).identity() == curve.settings["examples"]


@pytest.fixture(scope="module")
def novels_examples(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, tuple[str, ...]]:
    """A workspace with the examples, and the settings that every command needs."""
    novels = json.dumps([str(shared_data / "corpora" / "novels100" / "*.txt")])
    workspace = str(tmp_path_factory.mktemp("curves") / "ws")
    # A processor with fast bfloat16 would choose that.
    settings = ("--set", f"documents.sources.0.inputs={novels}", "--set", "pretraining.precision=fp32")
    for job in ("shard_corpus", "train_vocabulary", "build_examples"):
        command = [sys.executable, "-m", f"pipelines.{job}", RECIPE, "--workspace", workspace, *settings]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return workspace, settings


@pytest.mark.slow
@pytest.mark.timeout(1_500)
@pytest.mark.parametrize("size", OWN_SETTINGS)
def test_the_first_steps_of_a_fresh_run_follow_the_curve(
    size: str, novels_examples: tuple[str, tuple[str, ...]], tmp_path: Path
) -> None:
    """The complete schedule, ended by a signal: a shorter run would have another learning rate."""
    workspace = str(tmp_path / "ws")
    shutil.copytree(novels_examples[0], workspace)
    path = Path(workspace, "pretraining.building", "metrics.jsonl")
    own = [argument for setting in OWN_SETTINGS[size] for argument in ("--set", setting)]
    command = [sys.executable, "-m", "training.pretrain", RECIPE, "--workspace", workspace, *novels_examples[1], *own]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as training:
        while training.poll() is None and STEPS[size] not in losses(path):
            time.sleep(0.5)
        training.send_signal(signal.SIGTERM)
        said = training.communicate(timeout=120)[0]
    assert os.path.isdir(Path(workspace, "pretraining.building")), said
    found = {step: each for step, each in losses(path).items() if step <= STEPS[size]}
    assert len(found) == STEPS[size] // 20
    curve = read_reference(f"{size}-novels")
    for step, (tokens, own) in found.items():
        for name, loss in own.items():
            assert loss == pytest.approx(curve.at(name, tokens), rel=TOLERANCES[name]), (step, name)


def losses(path: Path) -> dict[int, tuple[float, dict[str, float]]]:
    """Tokens and losses by step, of the lines that are written completely."""
    if not path.is_file():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return {
        int(each["step"]): (each["tokens"], {name: each[name] for name in TOLERANCES})
        for each in records
        if "mlm_loss" in each
    }
