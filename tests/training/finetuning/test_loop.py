"""The fine-tuning loop: best epoch, early stop, several ranks, other encoders, small tasks initialized from MNLI."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.support.training.finetune_ranks import finetune_on_ranks
from torch import nn

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from pipelines.contract.workspace import METRICS_NAME
from pipelines.results.coverage import fit_of
from pipelines.statistics.training import FamilyStatistics, TrialStatistics
from training.bert.heads import BertForPreTraining
from training.bert.huggingface import huggingface_config, write_model
from training.bert.modeling import initialize_weights
from training.bert.packing import IntArray, PackedSequences
from training.engine.processes import Processes
from training.finetuning.classifier import BertForSequenceClassification
from training.finetuning.loop import Beginning, Fitting
from training.finetuning.problem import Forward
from training.finetuning.text import EncodedText
from training.settings.finetuning import FinetuningConfig
from training.settings.model import ModelConfig
from training.tracking.tracker import Tracker

MODEL = ModelConfig(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
WORDS = [f"w{number}" for number in range(40)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


class Scripted:
    """A problem whose scores are given beforehand."""

    metric = "accuracy"
    head_prefixes: tuple[str, ...] = ("classifier.",)
    coverage = fit_of(words=6, tokens=6, unk=0, characters=6, unk_characters=0)

    def __init__(self, scores: list[float]) -> None:
        rows = [np.array([2, 5 + row, 3], dtype=np.uint32) for row in range(6)]
        self.train_text = EncodedText(rows, np.full(6, 3), np.full(6, 3))
        self._scores = iter(scores)
        self.seen: list[torch.Tensor] = []
        self.finished: list[torch.Tensor] = []

    def build_model(self, model: ModelConfig, vocab_size: int) -> nn.Module:
        return BertForSequenceClassification(model, vocab_size, 2)

    def loss_sum(self, output: torch.Tensor, rows: IntArray, _packed: PackedSequences, /) -> torch.Tensor:
        return nn.functional.cross_entropy(output, torch.from_numpy(rows % 2), reduction="sum")

    def num_loss_terms(self, rows: IntArray) -> int:
        return len(rows)

    def evaluate(self, forward: Forward) -> dict[str, float]:
        self.seen.append(self._answers(forward))
        return {"accuracy": next(self._scores)}

    def finish(self, forward: Forward, _directory: str) -> FamilyStatistics:
        self.finished.append(self._answers(forward))
        return FamilyStatistics(dev_rows=6)

    def huggingface(self) -> tuple[str, dict[str, Any]]:
        return "BertForSequenceClassification", {}

    def _answers(self, forward: Forward) -> torch.Tensor:
        answers = torch.empty(6, 2)
        for rows, _, output in forward(self.train_text):
            answers[torch.from_numpy(rows)] = output
        return answers


def fit(problem: Scripted, processes: Processes, directory: Path, **settings: Any) -> tuple[Any, list[str]]:
    config = FinetuningConfig(batch_size=4, learning_rate=1e-2, max_seq_length=8, log_every_steps=1, **settings)
    lines: list[str] = []
    fitting = Fitting(problem, Beginning(MODEL, len(VOCABULARY), None), config, config, processes, lines.append)
    with Tracker(str(directory), is_first=True) as tracker:
        return fitting.run(tracker, str(directory / "predictions")), lines


def test_the_best_epoch_is_kept_and_finishes(single_process: Processes, tmp_path: Path) -> None:
    problem = Scripted([0.5, 0.75, 0.75, 0.6])
    fitted, lines = fit(problem, single_process, tmp_path, num_train_epochs=4)
    assert (fitted.epoch, fitted.metrics, fitted.more) == (2, {"accuracy": 0.75}, FamilyStatistics(dev_rows=6))
    assert len(problem.seen) == 4
    # Predictions come from the second epoch's weights, which are those in the result, and not from the last one's.
    torch.testing.assert_close(problem.finished[0], problem.seen[1], rtol=0, atol=0)
    assert not torch.equal(problem.finished[0], problem.seen[3])
    assert sum(line.startswith("epoch") for line in lines) == 4


def test_early_stop_waits_for_so_many_epochs(single_process: Processes, tmp_path: Path) -> None:
    problem = Scripted([0.5, 0.7, 0.7, 0.6, 0.9])
    fitted, lines = fit(problem, single_process, tmp_path, num_train_epochs=5, early_stopping_epochs=2)
    assert fitted.epoch == 2
    assert len(problem.seen) == 4
    assert lines[-1] == "stopping early: no better accuracy since epoch 2"


def test_a_score_that_is_no_number_is_never_the_best(single_process: Processes, tmp_path: Path) -> None:
    nan = float("nan")
    fitted, _ = fit(Scripted([nan, 0.5, nan, 0.4]), single_process, tmp_path, num_train_epochs=4)
    assert fitted.epoch == 2
    with pytest.raises(InputError, match=r"fine-tuning, epoch 2: .* accuracy is nan; .*lower learning_rate"):
        fit(Scripted([nan, nan]), single_process, tmp_path, num_train_epochs=2)


class Broken(Scripted):
    """After the first epoch the model has a weight that is no number."""

    def build_model(self, model: ModelConfig, vocab_size: int) -> nn.Module:
        self.model = super().build_model(model, vocab_size)
        return self.model

    def evaluate(self, forward: Forward) -> dict[str, float]:
        with torch.no_grad():
            next(self.model.parameters()).view(-1)[3] = float("nan")
        return super().evaluate(forward)


def test_weights_that_are_no_numbers_are_refused(single_process: Processes, tmp_path: Path) -> None:
    problem = Broken([0.5])
    with pytest.raises(InputError, match=r"fine-tuning, epoch 1: .* 1 of \d+ weights of \S+ are not finite"):
        fit(problem, single_process, tmp_path, num_train_epochs=1)
    assert not problem.finished


def test_mistakes_are_refused_before_training(single_process: Processes, tmp_path: Path) -> None:
    config, problem = FinetuningConfig(max_seq_length=64), Scripted([0.5])
    with pytest.raises(InputError, match="max_seq_length = 64 exceeds the encoder's 32 positions; lower it"):
        Fitting(problem, Beginning(MODEL, 45, None), config, config, single_process, lambda _line: None)
    problem.loss_sum = lambda output, _rows, _packed, /: output.sum() * float("nan")  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"loss nan or its gradient is not finite; lower learning_rate = 0\.01"):
        fit(problem, single_process, tmp_path)


@pytest.mark.slow
def test_an_encoder_with_a_nan_is_refused_before_training(single_process: Processes, encoder: Path) -> None:
    broken = encoder.parent / "broken"
    shutil.copytree(encoder, broken)
    weights = safetensors.torch.load_file(broken / "model.safetensors")
    weights["bert.embeddings.LayerNorm.weight"][0] = float("nan")
    safetensors.torch.save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    config, problem = FinetuningConfig(max_seq_length=8), Scripted([0.5])
    beginning = Beginning(MODEL, len(VOCABULARY), str(broken))
    fitting = Fitting(problem, beginning, config, config, single_process, lambda _line: None)
    with pytest.raises(InputError, match=r"broken: weight bert\.embeddings\.LayerNorm\.weight has 1 of \d+ numbers"):
        fitting.build_engine()


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RTE, MRPC and MNLI of a few rows each, in GLUE's own columns; the label is in the first word."""
    folder = tmp_path_factory.mktemp("glue")

    def write(path: str, header: str, rows: Iterator[str]) -> None:
        target = folder / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(header + "\n" + "".join(row + "\n" for row in rows))

    rte = ("entailment", "not_entailment")
    mnli = ("contradiction", "entailment", "neutral")
    for file, count in (("train", 10), ("dev", 6)):
        write(
            f"RTE/{file}.tsv",
            "index\tsentence1\tsentence2\tlabel",
            (f"{n}\t{WORDS[n % 2]} {WORDS[n + 5]}\t{WORDS[n]}\t{rte[n % 2]}" for n in range(count)),
        )
    for file in ("train", "dev_matched", "dev_mismatched"):
        write(
            f"MNLI/{file}.tsv",
            "index\tsentence1\tsentence2\tgold_label",
            (f"{n}\t{WORDS[n % 3]}\t{WORDS[n]} {WORDS[n + 9]}\t{mnli[n % 3]}" for n in range(12)),
        )
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreign Hugging Face directory with random weights and a vocabulary."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocabulary").mkdir()
    (folder / "vocabulary" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    model = BertForPreTraining(MODEL, len(VOCABULARY))
    initialize_weights(model, 0.1, 3)
    config = huggingface_config(MODEL, len(VOCABULARY), "BertForPreTraining")
    write_model(str(folder / "model"), model.state_dict(), config, str(folder / "vocabulary"))
    return folder / "model"


def finetune(workspace: Path, glue: Path, encoder: Path, tasks: list[str], ranks: int = 1, *more: str) -> None:
    """Run the command, as so many processes on loopback."""
    recipe = workspace / "recipe.toml"
    workspace.mkdir(exist_ok=True)
    recipe.write_text(
        f'[run]\nname = "fitting"\nworkspace = "{workspace}"\n[finetuning]\ntasks = {tasks}\nencoder = "{encoder}"\n'
        f'glue_dir = "{glue}"\nbatch_size = 4\nlearning_rate = 1e-2\nnum_train_epochs = 2\nmax_seq_length = 16\n'
        "log_every_steps = 1\ndropout = 0.0\n"
    )
    finetune_on_ranks(recipe, ranks, *more)


def losses_of(trial: Path) -> list[float]:
    lines = [json.loads(line) for line in (trial / METRICS_NAME).read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def shared_buffers() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("deepspeed")}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_three_ranks_learn_what_one_learns(glue: Path, encoder: Path, tmp_path: Path) -> None:
    buffers = shared_buffers()
    finetune(tmp_path / "one", glue, encoder, ["rte"])
    finetune(tmp_path / "three", glue, encoder, ["rte"], 3)
    one, three = (tmp_path / name / "finetuning" / "rte" / "pretrained" for name in ("one", "three"))
    # Ten rows in batches of four: the last batch of an epoch leaves one of three ranks without a row.
    assert len(losses_of(one)) == 6
    np.testing.assert_allclose(losses_of(three), losses_of(one), atol=2e-5, rtol=0)
    scores = [read_manifest(str(trial)) for trial in (one, three)]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0].statistics["dev"] == scores[1].statistics["dev"]
    # DeepSpeed would leave 64 MiB of the machine's memory a rank behind.
    assert shared_buffers() <= buffers


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_small_tasks_may_begin_from_mnli(glue: Path, encoder: Path, tmp_path: Path) -> None:
    finetune(tmp_path, glue, encoder, ["rte", "mnli"], 1, "--set", "finetuning.mnli_first=true")
    rte, mnli = (read_manifest(str(tmp_path / "finetuning" / name / "pretrained")) for name in ("rte", "mnli"))
    assert rte is not None
    assert mnli is not None
    assert rte.inputs["mnli"] == mnli.digest
    assert "encoder" in mnli.inputs
    assert "encoder" not in rte.inputs
    assert set(mnli.statistics_as(TrialStatistics).mismatched or {}) == {"accuracy"}
    # Three classes there, two here: the head is not taken over.
    assert json.loads((tmp_path / "finetuning/rte/pretrained/model/config.json").read_text())["label2id"] == {
        "entailment": 0,
        "not_entailment": 1,
    }
