"""Every combination of settings that a GPU run may have gets to its end, and does it on the GPU."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from tests.gpu.conftest import StandIn
from tests.support.training.synthetic_run import Workspace

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

MODERN = ("model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0")
SETTINGS = {
    "ZeRO 0, bf16, Muon": ("pretraining.zero_stage=0", 'pretraining.optimizer="muon"', *MODERN),
    "ZeRO 0, fp16": ("pretraining.zero_stage=0", 'pretraining.precision="fp16"'),
    "ZeRO 0, fp32": ("pretraining.zero_stage=0", 'pretraining.precision="fp32"'),
    "ZeRO 1, bf16, micro-batches": ("pretraining.zero_stage=1", "pretraining.micro_batch_size=4"),
    "ZeRO 2, fp16, recomputed": (
        "pretraining.zero_stage=2",
        'pretraining.precision="fp16"',
        "pretraining.activation_checkpointing=true",
    ),
    "ZeRO 2, fp32": ("pretraining.zero_stage=2", 'pretraining.precision="fp32"'),
    "ZeRO 2, bf16, offloaded": ("pretraining.zero_stage=2", "pretraining.offload_optimizer=true"),
    "ZeRO 2, bf16, compiled": ("pretraining.zero_stage=2", "pretraining.compile=true", *MODERN),
    "ZeRO 3, bf16, AdamW": ("pretraining.zero_stage=3", 'pretraining.optimizer="adamw"'),
    "heads of 4, SDPA instead of flash": ("pretraining.zero_stage=1", "model.num_attention_heads=8"),
}
SHORT = (
    "pretraining.phases.0.steps=4",
    "pretraining.phases.1.steps=3",
    "pretraining.eval_every_steps=3",
    "pretraining.checkpoint_every_steps=2",
)


@pytest.fixture(scope="module")
def pretrained(stand_in: StandIn, make_workspace: Callable[[str], Workspace]) -> Workspace:
    workspace = make_workspace("gpu-pretrained")
    stand_in.training(workspace, "training.pretrain", *SHORT, "pretraining.zero_stage=1")
    return workspace


@pytest.mark.parametrize("name", SETTINGS)
def test_pretraining_gets_to_its_end(stand_in: StandIn, make_workspace: Callable[[str], Workspace], name: str) -> None:
    workspace = make_workspace("gpu")
    output, _ = stand_in.training(workspace, "training.pretrain", *SHORT, *SETTINGS[name])
    assert "1 ranks on cuda" in output
    assert "complete: 7 steps" in output
    assert ("instead of the variable-length flash kernel" in output) == ("fp32" in name or "SDPA" in name)


def test_two_ranks_pretrain_and_one_resumes(stand_in: StandIn, make_workspace: Callable[[str], Workspace]) -> None:
    workspace = make_workspace("gpu-two-ranks")
    output, _ = stand_in.training(workspace, "training.pretrain", *SHORT, "pretraining.zero_stage=2", ranks=2)
    assert "2 ranks on cuda" in output
    assert "complete: 7 steps" in output
    stopped = workspace.stopped_after(6, "stopped")
    output, _ = stand_in.training(stopped, "training.pretrain", *SHORT, "pretraining.zero_stage=2")
    assert "resumed from checkpoint step-0000000006" in output
    assert "complete: 7 steps" in output


def test_finetuning(stand_in: StandIn, pretrained: Workspace) -> None:
    output, _ = stand_in.training(pretrained, "training.finetune", *SHORT, "pretraining.zero_stage=1")
    assert output.count(": complete: best epoch 1") == 2


def test_distillation(stand_in: StandIn, pretrained: Workspace) -> None:
    settings = ("num_train_epochs=0.2", "max_seq_length=64", "global_batch_size=16")
    student = ("model.num_hidden_layers=1", *(f"distillation.{setting}" for setting in settings))
    output, _ = stand_in.training(pretrained, "training.distill", *student)
    assert os.path.isfile(os.path.join(pretrained.path, "distillation", "manifest.json")), output


def test_features(stand_in: StandIn, pretrained: Workspace, tmp_path: Path) -> None:
    words = Path(pretrained.path, "vocabulary", "vocab.txt").read_text().split()[-20:]
    (tmp_path / "lines.txt").write_text("\n".join(" ".join(words[: 3 + number]) for number in range(8)) + "\n")
    files = ("--input", str(tmp_path / "lines.txt"), "--output", str(tmp_path / "features.arrow"))
    stand_in.python("-m", "training.extract_features", "--model", pretrained.path, "--layers=-1", *files)
    with pa.OSFile(str(tmp_path / "features.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    assert set(table["line"].to_pylist()) == set(range(8))


def test_the_benchmark(stand_in: StandIn, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    stand_in.python("tests/benchmarks/gpu_pretraining.py", "--cases", "tiny-64", "--output", str(result))
    measured = json.loads(result.read_text())
    assert (measured["device"][:8], set(measured["cases"])) == ("stand-in", {"tiny-64"})
