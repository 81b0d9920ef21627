"""Pre-training end to end: DeepSpeed, two ranks, kills, resumption, and error messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoModelForMaskedLM

from pipelines.contract.errors import exit_code_of
from pipelines.contract.manifest import read_manifest
from pipelines.statistics.metrics import BERT_METRICS
from training import pretrain
from training.resuming.process_end import StopRequest

pytestmark = pytest.mark.timeout(300)

STEPS = 20


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
    assert sorted(undisturbed.losses()) == list(range(1, STEPS + 1))
    assert {f"encoder/{name}" for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer.json")} <= {
        file.name for file in manifest.files
    }
    with open(os.path.join(directory, "deepspeed.json"), encoding="utf-8") as stream:
        assert json.load(stream)["zero_optimization"]["stage"] == 2
    model = AutoModelForMaskedLM.from_pretrained(os.path.join(directory, "encoder"))
    assert sum(parameter.numel() for parameter in model.parameters()) < statistics["parameters"]
    lines = [line for line in undisturbed.metrics() if "loss" in line]
    assert all(0 < line["model_flops_utilization"] < 1.5 and line["pooler_gradient"] > 0 for line in lines)
    assert [metric["name"] for metric in statistics["metrics"]] == [metric.name for metric in BERT_METRICS]
    assert {metric["name"] for metric in statistics["metrics"]} == statistics["heldout_after"].keys()
    names = os.listdir(os.path.join(directory, "checkpoints"))
    assert sorted(name for name in names if name.startswith("step-")) == ["step-0000000015", "step-0000000020"]


def test_a_complete_stage_is_skipped_without_loading_torch(undisturbed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    result = undisturbed.run("training.pretrain")
    assert result.returncode == 0
    assert result.stdout.startswith("pretraining: complete and up to date")
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "training.pretrain" in imported or "training" in imported
    assert not imported & {"torch", "deepspeed", "transformers"}


def wait_for_step(workspace: Any, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        # Asked for each time: the directory of the build appears once the checks are done.
        if os.path.exists(os.path.join(workspace.stage(), "metrics.jsonl")) and step in workspace.losses():
            return
        time.sleep(0.02)
    pytest.fail(f"step {step} was not reached; exit code {process.poll()}")


def error_line(workspace: Any, *arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a mistake prints; the check happens before torch's processes start, so no process is needed."""
    command = [workspace.recipe, "--workspace", workspace.path, *arguments]
    assert exit_code_of(lambda: pretrain.main(command)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.slow
def test_sigterm_finishes_the_step_and_writes_a_checkpoint(
    make_workspace: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = make_workspace("stopped")
    # So many that the signal arrives before the last one, however busy the machine is.
    many = ("--set", "pretraining.phases.0.steps=3000")
    process = workspace.start("training.pretrain", "--set", "pretraining.checkpoint_every_steps=10000", *many)
    wait_for_step(workspace, 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "stopped by a signal after step" in output
    names = os.listdir(os.path.join(workspace.stage(), "checkpoints"))
    assert len([name for name in names if name.startswith("step-")]) == 1

    # Other settings are refused while this run is unfinished.
    wrong = error_line(workspace, "--set", "pretraining.learning_rate=0.5", *many, capsys=capsys)
    assert "learning_rate was 0.001, is 0.5" in wrong


def test_sigint_and_sigterm_are_remembered_until_the_step_is_done() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            stop = StopRequest()
            assert not stop.received
            signal.raise_signal(number)
            assert stop.received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_mistakes_give_one_line(make_workspace: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    workspace = make_workspace("mistakes")

    def line(*arguments: str) -> str:
        return error_line(workspace, *arguments, capsys=capsys)

    assert "num_attention_heads" in line("--set", "model.hidden_size=33")
    assert "did you mean 'learning_rate'" in line("--set", "pretraining.learning_rat=1")
    assert "exceeds model.max_position_embeddings = 64" in line("--set", "pretraining.phases.1.max_seq_length=128")
    assert "has lengths 32, 64" in line("--set", "pretraining.phases.0.max_seq_length=48")
    assert "num_warmup_steps" in line("--set", "pretraining.num_warmup_steps=100")
    with open(os.path.join(workspace.path, "vocabulary", "vocab.txt"), "a", encoding="utf-8") as stream:
        stream.write("another\n")
    assert "built with another vocabulary" in line()
    os.remove(os.path.join(workspace.path, "examples", "manifest.json"))
    assert "run clozeworks examples" in line()
