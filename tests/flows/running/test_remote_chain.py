"""The chain of flows in an object store: the bytes of the local run, and what later commands read from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.support import REPOSITORY
from tests.support.faults.mlflow_server import Server

from pipelines.contract import storage
from pipelines.contract.manifest import read_manifest
from training.bert.huggingface import read_weights
from training.stages.encoders import encoder_directory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FIRST = ["ka", "lo", "mi", "ter", "sun", "bre", "vo", "dal", "pi", "gra", "hu", "ne"]
SECOND = ["na", "la", "tor", "ve", "ri", "mos"]
WORDS = [first + second for first in FIRST for second in SECOND]
STAGES = ("documents", "vocabulary", "examples", "pretraining")
TRIALS = (
    "finetuning/data/word-order",
    "finetuning/word-order/pretrained",
    "finetuning/answers/pretrained",
    "finetuning/answers/sweep/batch16-lr0.001-epochs1-seed12345",
)
RECIPE = """
[run]
name = "chain"
workspace = "{directory}/local"
workers = 1
[documents]
num_shards = 2
heldout_share = 0.3
sources = [{{ inputs = ["{directory}/corpus/*.txt"] }}]
[vocabulary]
size = 100
[examples]
lengths = [{{ max_seq_length = 32, max_predictions_per_seq = 5 }}]
[model]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 32
max_position_embeddings = 32
[pretraining]
phases = [{{ max_seq_length = 32, steps = 4, global_batch_size = 4 }}]
num_warmup_steps = 1
checkpoint_every_steps = 2
eval_examples = 4
[finetuning]
tasks = ["word-order", "answers"]
num_train_epochs = 1
max_seq_length = 32
word_order = {{ min_words = 5, max_words = 16, damaged_words = 3, max_train_examples = 20, max_dev_examples = 10 }}
[[finetuning.tables]]
name = "answers"
train_file = "{directory}/answers.csv"
dev_file = "{directory}/answers.csv"
[finetuning.sweep]
batch_sizes = [16]
learning_rates = [1e-3]
num_train_epochs = [1]
"""


def write_inputs(directory: Path) -> str:
    """A corpus, a table and a recipe; returns the recipe's path."""
    (directory / "corpus").mkdir()
    for number in range(24):
        sentences = [
            " ".join(WORDS[(number * 7 + line * 5 + word * (word + 3)) % len(WORDS)] for word in range(8 + line)) + "."
            for line in range(7)
        ]
        (directory / f"corpus/{number:02}.txt").write_text("\n".join(sentences).replace("kana", "Kana") + "\n")
    rows = [f"{WORDS[row % 24]} {WORDS[row * 5 % 24]},{'yes' if row % 2 else 'no'}" for row in range(24)]
    (directory / "answers.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    recipe = directory / "recipe.toml"
    recipe.write_text(RECIPE.format(directory=directory))
    return str(recipe)


def run(module: str, *arguments: str, disk: Path, **variables: str) -> str:
    """Run a command on a machine with this disk for caches; returns its output."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(disk), "OMP_NUM_THREADS": "1", **variables}
    for name in ("PREFECT_HOME", "PREFECT_API_URL", "CLOZEWORKS_CACHE"):
        environment.pop(name, None)
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def digests(workspace: str) -> Mapping[str, str]:
    """Digest of the files of every result."""
    manifests = {name: read_manifest(storage.join(workspace, name)) for name in (*STAGES, *TRIALS)}
    return {name: manifest.digest if manifest else "missing" for name, manifest in manifests.items()}


def test_the_chain_in_a_store_is_that_of_a_local_run(
    s3_workspace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_inputs(tmp_path)
    first, empty = tmp_path / "first", tmp_path / "empty"
    proxied = Server(tmp_path, ["--artifacts-destination", f"{s3_workspace}/proxied"])
    (tmp_path / "direct").mkdir()
    direct = Server(
        tmp_path / "direct", ["--no-serve-artifacts", "--default-artifact-root", f"{s3_workspace}/artifacts"]
    )
    workspace = f"{s3_workspace}/run"
    remote = ("--set", f"run.workspace={workspace}", "--set", f"tracking.mlflow_tracking_uri={proxied.uri}")
    try:
        proxied.start()
        run("flows.end_to_end", recipe, disk=first)
        run("flows.end_to_end", recipe, *remote, disk=first)
        local = digests(f"{tmp_path}/local")
        assert "missing" not in local.values()
        assert digests(workspace) == local
        # The builds are gone from the machine that wrote them; the private server's database is there.
        staging = first / "clozeworks/staging"
        assert not [path for path in (staging / "builds").rglob("*") if path.is_file()]
        assert list((staging / "prefect").iterdir())
        assert storage.list_files(f"{s3_workspace}/proxied")
        for name in ("report.html", "timings.json", "finetuning/answers/sweep/best.json"):
            assert storage.file_size_bytes(storage.join(workspace, name)), name

        # Another machine, with an empty disk and another server, whose clients write artifacts to the store.
        direct.start()
        elsewhere = (*remote[:2], "--set", f"tracking.mlflow_tracking_uri={direct.uri}")
        assert "skipped: complete" in run("flows.end_to_end", recipe, *elsewhere, disk=empty)
        assert storage.list_files(f"{s3_workspace}/artifacts")
        (found,) = MlflowClient(direct.uri, direct.uri).search_model_versions("name = 'chain-encoder'")
        assert found.source

        status = json.loads(run("flows.status", workspace, "--json", disk=empty))
        assert {stage["state"] for stage in status["stages"]} == {"complete"}
        assert status["next"] == f"clozeworks validate {workspace}"
        assert "pre-training" in run("flows.estimate", recipe, *remote, "--from-workspace", workspace, disk=empty)
        run("pipelines.validate", workspace, disk=empty)
    finally:
        proxied.kill()
        direct.kill()

    # A checkpoint and the encoder of the store are those of the local run.
    for source, where in ((f"{tmp_path}/local", "local"), (workspace, "remote")):
        arguments = ("--checkpoint", "step-2", "--output", f"{tmp_path}/{where}-2")
        run("training.export_checkpoint", source, *arguments, disk=empty)
    exported = [(tmp_path / f"{where}-2/model.safetensors").read_bytes() for where in ("local", "remote")]
    assert exported[0] == exported[1]
    monkeypatch.setenv("CLOZEWORKS_CACHE", str(tmp_path / "models"))
    for source in (workspace, f"{workspace}/pretraining/encoder", f"{workspace}@latest"):
        weights = read_weights(encoder_directory(source))
        assert weights.keys() == read_weights(encoder_directory(f"{tmp_path}/local")).keys()
