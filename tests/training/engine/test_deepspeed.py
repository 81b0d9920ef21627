"""ZeRO 0 to 3, offload, activation checkpointing and accumulation give one loss curve; two nodes are two launchers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import safetensors.torch
import torch
from tests.support import SUPPORT
from transformers import AutoModelForMaskedLM
from transformers import BertForPreTraining as ReferenceBert

from pipelines.contract.manifest import read_manifest, record_of, write_manifest

pytestmark = pytest.mark.timeout(300)

STEPS = 40
TOLERANCE = 2e-5
"""Of a loss that falls from 6.3 to 5, in fp32: ranks and stages add up the same numbers in another order."""

SHARED = {
    "model.hidden_dropout_prob": "0.0",
    "model.attention_probs_dropout_prob": "0.0",
    # Bias correction counts steps: a stage whose optimizer steps once too often would show.
    "pretraining.adam_bias_correction": "true",
    "pretraining.learning_rate": "3e-3",
    "pretraining.phases.0.steps": "30",
    "pretraining.phases.1.steps": "10",
    "pretraining.checkpoint_every_steps": "1000",
    "pretraining.eval_every_steps": "1000",
}
TWO_RANKS = {
    "stage 0": {"zero_stage": "0"},
    "stage 1": {"zero_stage": "1"},
    "stage 2": {"zero_stage": "2"},
    "stage 3": {"zero_stage": "3"},
    "offloaded": {"zero_stage": "2", "offload_optimizer": "true"},
    "recomputed": {"zero_stage": "3", "activation_checkpointing": "true"},
    "adamw": {"zero_stage": "1", "optimizer": "adamw"},
    "lamb": {"zero_stage": "0", "optimizer": "lamb", "precision": "bf16", "learning_rate": "1e-2"},
    "one task": {"zero_stage": "3"},
}
ONE_RANK = {"accumulated": {"zero_stage": "0", "micro_batch_size": "8"}}
SAME_CURVE = ("stage 0", "stage 1", "stage 3", "offloaded", "recomputed", "adamw", "accumulated")


def overrides(own: dict[str, str]) -> list[str]:
    settings = SHARED | {f"pretraining.{key}": value for key, value in own.items()}
    return [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def started(command: list[str], **variables: str) -> subprocess.Popen[str]:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")},
        "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "CLOZEWORKS_LIFELINE_PID": str(os.getpid()),
        **variables,
    }
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(processes: Sequence[subprocess.Popen[str]]) -> str:
    """Wait for processes, all of which must end well; what they said."""
    with ThreadPoolExecutor(len(processes)) as pool:
        outputs = list(pool.map(lambda process: process.communicate(timeout=240)[0], processes))
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return "\n".join(outputs)


@dataclass(frozen=True)
class Runs:
    """Workspaces by the name of the variant that was trained in each, and what all of them said."""

    workspaces: dict[str, Any]
    output: str

    def losses(self, name: str) -> list[float]:
        lines = [line for line in self.workspaces[name].metrics() if "learning_rate" in line]
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        return [line["loss"] for line in lines]

    def encoder(self, name: str) -> str:
        return os.path.join(self.workspaces[name].path, "pretraining", "encoder")

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(os.path.join(self.encoder(name), "model.safetensors"))


def sharing(workspace: Any, folder: Path, name: str) -> Any:
    """A workspace of its own whose inputs are links to those of another one."""
    path = folder / name.replace(" ", "-")
    path.mkdir()
    for stage in ("vocabulary", "examples"):
        os.symlink(os.path.join(workspace.path, stage), path / stage)
    return replace(workspace, path=str(path))


def without_next_sentence(workspace: Any) -> Any:
    """Rewrite a workspace's examples as those of a recipe with examples.next_sentence = false."""
    directory = os.path.join(workspace.path, "examples")
    manifest = read_manifest(directory)
    assert manifest is not None
    records = []
    for file in manifest.files:
        path = os.path.join(directory, file.name)
        with pa.OSFile(path) as source:
            table = pa.ipc.open_file(source).read_all()
        ends = pc.list_value_length(table["input_ids"]).cast(pa.uint16())
        labels = pa.array([0] * table.num_rows, pa.uint8())
        for name, column in (("segment_b_start", ends), ("next_sentence_label", labels)):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), column)
        table = table.replace_schema_metadata({**table.schema.metadata, "clozeworks.next_sentence": "false"})
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        records.append(record_of(directory, file.name, table.num_rows))
    config = {"next_sentence": False, "masked_lm_prob": 0.15}
    write_manifest(directory, manifest.model_copy(update={"files": tuple(records), "config": config}))
    return workspace


@pytest.fixture(scope="module")
def runs(make_workspace: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All variants on two ranks, one after another in one process group, and one rank that accumulates."""
    inputs, one_task = make_workspace("inputs"), without_next_sentence(make_workspace("one-task"))
    folder = tmp_path_factory.mktemp("variants")
    workspaces = {
        name: sharing(one_task if name == "one task" else inputs, folder, name) for name in TWO_RANKS | ONE_RANK
    }
    script = str(SUPPORT / "training" / "pretrain_in_turn.py")

    def command(variants: dict[str, dict[str, str]]) -> list[str]:
        arguments: list[str] = []
        for name, own in variants.items():
            arguments += ["--", inputs.recipe, "--workspace", workspaces[name].path, *overrides(own)]
        return [sys.executable, script, *arguments[1:]]

    meeting = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    two = [started(command(TWO_RANKS), **meeting, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    return Runs(workspaces, ended([*two, started(command(ONE_RANK))]))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME_CURVE)
def test_every_way_to_compute_a_step_gives_the_same_curve(runs: Runs, name: str) -> None:
    expected = runs.losses("stage 2")
    assert expected[-1] < expected[0] - 0.5
    assert runs.losses(name) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TWO_RANKS if name != "one task"])
def test_each_stage_exports_whole_fp32_weights(runs: Runs, name: str) -> None:
    _, report = ReferenceBert.from_pretrained(runs.encoder(name), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = runs.weights("stage 2")
    for key, tensor in runs.weights(name).items():
        assert tensor.dtype == torch.float32
        if name == "lamb":
            # The optimizer's own fp32 weights, not those that bf16 has rounded for the forward pass.
            assert not torch.equal(tensor, tensor.bfloat16().float()) or not tensor.any(), key
        else:
            torch.testing.assert_close(tensor, expected[key], atol=1e-4, rtol=0.0, msg=key)


@pytest.mark.slow
def test_lamb_learns_on_whole_matrices(runs: Runs) -> None:
    losses = runs.losses("lamb")
    assert losses[-1] < losses[0] - 0.2
    assert "deviations from BERT: hidden_dropout_prob 0.0 (BERT: 0.1), attention_probs_dropout_prob 0.0 (BERT: 0.1), "
    assert "optimizer lamb (BERT: adam)" in runs.output


@pytest.mark.slow
def test_without_next_sentence_nothing_is_said_or_kept_of_it(runs: Runs) -> None:
    for line in runs.workspaces["one task"].metrics():
        assert not any("nsp" in key for key in line)
        if "learning_rate" in line:
            assert line["loss"] == line["mlm_loss"]
    losses = runs.losses("one task")
    assert losses[-1] < losses[0] - 0.5
    assert not any("pooler" in key or "seq_relationship" in key for key in runs.weights("one task"))
    _, report = AutoModelForMaskedLM.from_pretrained(runs.encoder("one task"), output_loading_info=True)
    assert not report["missing_keys"]
    manifest = read_manifest(os.path.join(runs.workspaces["one task"].path, "pretraining"))
    assert manifest is not None
    assert manifest.statistics["deviations"].endswith("next_sentence false (BERT: true)")
    assert "nsp_loss" not in manifest.statistics["heldout_after"]


@pytest.mark.slow
def test_the_generated_settings_lie_beside_the_run(runs: Runs) -> None:
    for name, own in TWO_RANKS.items():
        path = os.path.join(runs.workspaces[name].path, "pretraining", "deepspeed.json")
        with open(path, encoding="utf-8") as stream:
            settings = json.load(stream)
        assert settings["zero_optimization"]["stage"] == int(own["zero_stage"])
        assert ("offload_optimizer" in settings["zero_optimization"]) == (name == "offloaded")
        assert settings["bf16"]["enabled"] == (name == "lamb")


@pytest.mark.slow
def test_two_nodes_are_two_launchers(runs: Runs, repository: Path, tmp_path: Path) -> None:
    """infra/deepspeed's own hostfile form and launch script, the nodes' address being loopback."""
    workspace = sharing(runs.workspaces["stage 2"], tmp_path, "nodes")
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("node-a slots=1\nnode-b slots=1\n")
    script = str(repository / "infra" / "deepspeed" / "launch.sh")
    recipe = [workspace.recipe, "--workspace", workspace.path, *overrides(TWO_RANKS["stage 2"])]
    meeting = {"HOSTFILE": str(hostfile), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    nodes = [started([script, "--node", str(node), *recipe], **meeting) for node in range(2)]
    said = ended(nodes)
    assert "2 ranks on cpu" in said
    found = Runs({"nodes": workspace}, said)
    assert found.losses("nodes") == runs.losses("stage 2")
    for key, tensor in found.weights("nodes").items():
        assert torch.equal(tensor, runs.weights("stage 2")[key]), key
