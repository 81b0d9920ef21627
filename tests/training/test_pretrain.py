"""Pre-training for real: DeepSpeed, two ranks, kills, resumption, and what a person sees when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForMaskedLM

from pipelines.contract import read_manifest
from pipelines.recipe import exit_code_of
from training import pretrain

pytestmark = pytest.mark.timeout(300)

STEPS = 20


def losses(workspace: Any) -> dict[int, float]:
    return {int(line["step"]): line["loss"] for line in workspace.metrics() if "loss" in line}


def weights(workspace: Any) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(os.path.join(workspace.path, "pretraining", "encoder", "model.safetensors"))


def same_weights(left: Any, right: Any) -> bool:
    first, second = weights(left), weights(right)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def undisturbed(make_workspace: Callable[[str], Any]) -> Any:
    """Two ranks, ZeRO stage 2, dropout on, both phases, from start to end."""
    workspace = make_workspace("undisturbed")
    result = workspace.run("training.pretrain", ranks=2)
    assert result.returncode == 0, result.stdout + result.stderr
    return workspace


def test_two_ranks_write_a_complete_stage(undisturbed: Any) -> None:
    directory = os.path.join(undisturbed.path, "pretraining")
    manifest = read_manifest(directory)
    assert manifest is not None
    statistics = manifest.statistics
    assert statistics["steps"] == STEPS
    assert statistics["sequences"] == 14 * 16 + 6 * 8
    assert statistics["world_size"] == 2
    assert statistics["heldout_after"]["mlm_loss"] < statistics["heldout_before"]["mlm_loss"] - 0.3
    assert {"mlm_accuracy", "mlm_perplexity", "nsp_loss", "nsp_accuracy"} <= statistics["heldout_after"].keys()
    assert sorted(losses(undisturbed)) == list(range(1, STEPS + 1))
    assert {f"encoder/{name}" for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer.json")} <= {
        file.name for file in manifest.files
    }
    with open(os.path.join(directory, "deepspeed.json"), encoding="utf-8") as stream:
        assert json.load(stream)["zero_optimization"]["stage"] == 2
    model = AutoModelForMaskedLM.from_pretrained(os.path.join(directory, "encoder"))
    assert sum(parameter.numel() for parameter in model.parameters()) < statistics["parameters"]
    names = os.listdir(os.path.join(directory, "checkpoints"))
    assert sorted(name for name in names if name.startswith("step-")) == ["step-0000000015", "step-0000000020"]


def test_a_complete_stage_is_skipped_without_loading_torch(undisturbed: Any) -> None:
    started = time.monotonic()
    result = undisturbed.run("training.pretrain")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("pretraining: complete and up to date")
    assert time.monotonic() - started < 5


def wait_for_step(workspace: Any, step: int, process: subprocess.Popen[str]) -> None:
    path = os.path.join(workspace.path, "pretraining", "metrics.jsonl")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if os.path.exists(path) and step in losses(workspace):
            return
        time.sleep(0.02)
    pytest.fail(f"step {step} was not reached; exit code {process.poll()}")


def test_killed_and_resumed_it_ends_with_the_same_weights(
    undisturbed: Any, make_workspace: Callable[[str], Any]
) -> None:
    workspace = make_workspace("killed")
    process = workspace.start("training.pretrain", ranks=2)
    wait_for_step(workspace, 7, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert read_manifest(os.path.join(workspace.path, "pretraining")) is None
    checkpoints = os.path.join(workspace.path, "pretraining", "checkpoints")
    # A write that was cut off leaves a directory under a temporary name, and a damaged one fails its checksums.
    os.makedirs(os.path.join(checkpoints, "incomplete-0000000099"), exist_ok=True)
    newest = sorted(name for name in os.listdir(checkpoints) if name.startswith("step-"))[-1]
    damaged = os.path.join(checkpoints, "step-0000000019")
    shutil.copytree(os.path.join(checkpoints, newest), damaged)
    victim = next(name for name in os.listdir(damaged) if name.endswith(".pt"))
    os.truncate(os.path.join(damaged, victim), 10)

    result = workspace.run("training.pretrain", ranks=2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "checkpoint step-0000000019 is damaged" in result.stdout
    assert f"resumed from checkpoint {newest}" in result.stdout
    assert losses(workspace) == losses(undisturbed)
    assert same_weights(workspace, undisturbed)


def error_line(workspace: Any, *arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a mistake prints; the check happens before torch's processes start, so no process is needed."""
    command = [workspace.recipe, "--workspace", workspace.path, *arguments]
    assert exit_code_of(lambda: pretrain.main(command)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_sigterm_finishes_the_step_and_writes_a_checkpoint(
    make_workspace: Callable[[str], Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace("stopped")
    process = workspace.start("training.pretrain", "--set", "pretraining.checkpoint_every_steps=1000")
    wait_for_step(workspace, 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "stopped by a signal after step" in output
    names = os.listdir(os.path.join(workspace.path, "pretraining", "checkpoints"))
    assert len([name for name in names if name.startswith("step-")]) == 1

    # Other settings, and another number of ranks, are refused while this run is unfinished.
    wrong = error_line(workspace, "--set", "pretraining.learning_rate=0.5", capsys=capsys)
    assert "learning_rate was 0.001, is 0.5" in wrong
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "written by 1 ranks, this run has 2" in error_line(workspace, capsys=capsys)


def test_losses_do_not_depend_on_ranks_micro_batches_or_stage(make_workspace: Callable[[str], Any]) -> None:
    """One rank that accumulates two micro-batches, against two ranks under ZeRO stage 3."""
    dropout_off = [
        "--set", "model.hidden_dropout_prob=0.0", "--set", "model.attention_probs_dropout_prob=0.0",
    ]  # fmt: skip
    one, two = make_workspace("one"), make_workspace("two")
    runs = [
        one.run("training.pretrain", "--set", "pretraining.micro_batch_size=8", *dropout_off),
        two.run("training.pretrain", "--set", "pretraining.zero_stage=3", *dropout_off, ranks=2),
    ]
    for result in runs:
        assert result.returncode == 0, result.stdout + result.stderr
    first, second = losses(one), losses(two)
    assert len(first) == STEPS
    for step, loss in first.items():
        assert second[step] == pytest.approx(loss, abs=1e-4), step


def test_mistakes_give_one_line(make_workspace: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    workspace = make_workspace("mistakes")

    def line(*arguments: str) -> str:
        return error_line(workspace, *arguments, capsys=capsys)

    assert "num_attention_heads" in line("--set", "model.hidden_size=33")
    assert "did you mean 'learning_rate'" in line("--set", "pretraining.learning_rat=1")
    assert "exceeds model.max_position_embeddings = 64" in line("--set", "pretraining.phases.1.max_seq_length=128")
    assert "holds lengths 32, 64" in line("--set", "pretraining.phases.0.max_seq_length=48")
    assert "num_warmup_steps" in line("--set", "pretraining.num_warmup_steps=100")
    with open(os.path.join(workspace.path, "vocabulary", "vocab.txt"), "a", encoding="utf-8") as stream:
        stream.write("another\n")
    assert "made with another vocabulary" in line()
    os.remove(os.path.join(workspace.path, "examples", "manifest.json"))
    assert "run python -m pipelines.build_examples" in line()
