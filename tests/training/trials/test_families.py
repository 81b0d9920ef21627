"""A family of tasks that is added as one row: planned, keyed, trained and swept like the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.training.tiny_models import WORDS, write_tiny_encoder
from torch import nn

from pipelines.contract import storage
from pipelines.contract.manifest import read_manifest
from pipelines.contract.recipe import Recipe, read_recipe
from pipelines.results.coverage import fit_of
from pipelines.statistics.training import FamilyStatistics
from training.bert.packing import IntArray, PackedSequences
from training.engine.processes import Processes
from training.finetuning.classifier import BertForSequenceClassification
from training.finetuning.problem import Forward, TaskInputs
from training.finetuning.text import EncodedText
from training.settings import tasks
from training.settings.model import ModelConfig
from training.settings.tasks import Family, TaskSettings
from training.stages.sections import FinetuningSections
from training.trials.running import beginning_of, open_problem, run_trial
from training.trials.sweep_plan import plan
from training.trials.trial_plan import planned_trials, trial_of

FIRST_WORD, ROWS = 5, 8


class FirstHalf:
    """Is the only word of a row one of the first half of the vocabulary?"""

    metric = "accuracy"
    head_prefixes: tuple[str, ...] = ("classifier.",)
    coverage = fit_of(words=6, tokens=6, unk=0, characters=6, unk_characters=0)

    def __init__(self, words: list[str]) -> None:
        rows = [np.array([2, WORDS.index(word), 3], dtype=np.uint32) for word in words]
        self.train_text = EncodedText(rows, np.full(len(rows), 3), np.full(len(rows), 3))
        self._labels = np.arange(len(rows)) * 2 // len(rows)

    def build_model(self, model: ModelConfig, vocab_size: int) -> nn.Module:
        return BertForSequenceClassification(model, vocab_size, 2)

    def loss_sum(self, output: torch.Tensor, rows: IntArray, _packed: PackedSequences, /) -> torch.Tensor:
        return nn.functional.cross_entropy(output, torch.from_numpy(self._labels[rows]), reduction="sum")

    def num_loss_terms(self, rows: IntArray) -> int:
        return len(rows)

    def evaluate(self, forward: Forward) -> dict[str, float]:
        right = [output.argmax(1).numpy() == self._labels[rows] for rows, _, output in forward(self.train_text)]
        return {"accuracy": float(np.concatenate(right).mean())}

    def finish(self, _forward: Forward, _directory: str) -> FamilyStatistics:
        return FamilyStatistics(train_rows=len(self._labels))

    def huggingface(self) -> tuple[str, dict[str, Any]]:
        return "BertForSequenceClassification", {}


def open_first_half(inputs: TaskInputs) -> FirstHalf:
    (path,) = tasks.family_of(inputs.config, inputs.task).data_files(inputs.config, inputs.task).values()
    return FirstHalf(storage.read_bytes(path).decode().split())


def words_file(settings: TaskSettings) -> str:
    return storage.join(str(settings.glue_dir), "words.txt")


ROW = Family(
    # Named by the recipe, as the tasks of a user's own tables would be.
    names=lambda settings: (f"first-half-of-{str(settings.glue_dir).rpartition('/')[2]}",),
    opener=f"{__name__}:open_first_half",
    problem=lambda settings, _: None if settings.glue_dir else "set glue_dir",
    data_files=lambda settings, _: {"words.txt": words_file(settings)},
    dev_files=lambda settings, _task, _folder: [words_file(settings)],
    is_small=lambda _settings, _task, _folder: True,
)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(tasks, "FAMILIES", (*tasks.FAMILIES, ROW))
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "words.txt").write_text("\n".join(WORDS[FIRST_WORD : FIRST_WORD + ROWS]))
    write_tiny_encoder(str(tmp_path / "encoder"))
    path = tmp_path / "recipe.toml"
    path.write_text(f"""
run = {{ workspace = "{tmp_path / "workspace"}" }}
[finetuning]
tasks = ["first-half-of-words"]
glue_dir = "{tmp_path / "words"}"
encoder = "{tmp_path / "encoder"}"
learning_rate = 1e-2
num_train_epochs = 20
batch_size = 4
max_seq_length = 8
precision = "fp32"
sweep = {{ grid = "none", small_task_restarts = 1 }}
""")
    return read_recipe(str(path))


def test_a_new_family_trains(recipe: Recipe, single_process: Processes) -> None:
    sections = FinetuningSections.of(recipe)
    ((task, start),) = planned_trials(sections.finetuning)
    trial = trial_of(sections, task, start)
    assert trial.difference() == "not built yet"
    statistics = run_trial(trial, beginning_of(trial), open_problem(trial, None), single_process)
    assert (statistics.train_rows, statistics.score) == (ROWS, 1.0)
    assert statistics.text == FirstHalf.coverage == trial.statistics().text
    assert trial_of(sections, task, start).difference() is None
    manifest = read_manifest(trial.directory)
    assert manifest is not None
    assert manifest.config["task"] == "first-half-of-words"
    storage.write_bytes(words_file(sections.finetuning), b"it returns the number")
    assert trial_of(sections, task, start).difference() == "input data changed"


def test_a_new_family_is_swept(recipe: Recipe) -> None:
    sections = FinetuningSections.of(recipe)
    trials = plan(sections, sections.finetuning.tasks[0])
    assert [trial.label for trial in trials] == [
        f"first-half-of-words/batch4-lr0.01-epochs20-seed{seed}" for seed in (12_345, 12_346)
    ]
