"""Registered models at a consumer: with transformers and mlflow, without this project and without a network."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.support.flows import registered_models as models
from tests.support.statistics import statistics_with
from tests.support.training import tiny_models

from flows.parameters.requests import RunRequest
from flows.parameters.whole_recipe import WholeRecipe
from flows.registry.criteria import Evaluation, evaluation_of
from flows.registry.logged_models import ModelFiles
from flows.registry.model_card import card_facts, card_text
from flows.registry.model_to_register import ModelToRegister
from flows.registry.promotion import move_alias
from flows.registry.registration import log_version, registered_version
from flows.tracking.runs import DIGEST_TAG, Tracker
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.statistics.training import TrialStatistics

SENTENCES = ["It returns the number of items.", "items the of number returns it"]

# Fails on any import of the project and on any connection, then does what a consumer does.
CONSUMER = """
    import importlib.abc, json, os, socket, sys

    class Blocker(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("pipelines", "training", "flows", "prefect", "apache_beam", "deepspeed"):
                raise ImportError(f"{name} is not installed at the consumer's")

    def refuse(self, address):
        raise OSError(f"no network here: {address}")

    sys.meta_path.insert(0, Blocker())
    socket.socket.connect = refuse
    import mlflow
    mlflow.set_tracking_uri(sys.argv[1])
    sentences = json.loads(sys.argv[2])
    pyfunc = mlflow.pyfunc.load_model("models:/trial-cola@champion")
    pipeline = mlflow.transformers.load_model("models:/trial-cola@champion")
    encoder = mlflow.transformers.load_model("models:/trial-encoder@champion")
    words = mlflow.pyfunc.load_model("models:/trial-encoder@champion").predict(["it [MASK] the list"])
    print(json.dumps({
        "pyfunc": pyfunc.predict(sentences).to_dict("records"),
        "pipeline": pipeline(sentences),
        "encoder": [
            type(encoder.model).__name__, len(encoder.tokenizer), encoder("it [MASK] the list")[0]["token_str"]
        ],
        "words": words,
        "signature": [str(pyfunc.metadata.signature.inputs), str(pyfunc.metadata.signature.outputs)],
    }))
"""


@pytest.fixture
def whole(write_recipe: Callable[..., str]) -> WholeRecipe:
    return RunRequest(recipe=write_recipe()).read()


@pytest.fixture
def tracker(whole: WholeRecipe) -> Tracker:
    return Tracker(whole)


def made_from(whole: WholeRecipe, name: str, directory: str) -> ModelToRegister:
    settings = {} if name == "trial-encoder" else {"max_seq_length": 16}
    statistics = statistics_with(TrialStatistics, metric="mcc", score=0.5, dev={"accuracy": 0.75}, train_rows=8551)
    manifest = models.manifest_of(directory, "finetuning", settings, statistics)
    files = ModelFiles(name, directory, settings)
    return ModelToRegister(files, manifest, Evaluation("mcc", 0.5, "d" * 64), card_facts(whole, files, manifest))


@pytest.mark.slow
def test_a_consumer_loads_what_was_registered(
    tracker: Tracker,
    whole: WholeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked: list[object] = []

    def refuse(_: socket.socket, address: object) -> None:
        asked.append(address)
        raise OSError(f"no network in this test: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    run_id = tracker.client.create_run(tracker.experiment_id).info.run_id
    written = (
        ("trial-encoder", tiny_models.write_tiny_encoder),
        ("trial-cola", tiny_models.write_tiny_classifier),
        ("trial-tagging", tiny_models.write_tiny_tagger),
    )
    for name, write in written:
        directory = str(tmp_path / name)
        write(directory)
        made = made_from(whole, name, directory)
        capfd.readouterr()
        number = log_version(tracker, run_id, made)
        printed = capfd.readouterr()
        assert (number, printed.out, printed.err) == ("1", "", "")
        assert registered_version(tracker.client, name, made.manifest.digest) == "1"
        assert registered_version(tracker.client, name, "another digest") is None
        assert move_alias(tracker.client, name, "champion", "1")
        assert not move_alias(tracker.client, name, "champion", "1")
        check_version(tracker.client, made, run_id, str(tmp_path))
    assert asked == []
    monkeypatch.undo()

    answers = consume(tracker.uri, tmp_path)
    assert answers["pyfunc"] == answers["pipeline"] == expected_answers(str(tmp_path / "trial-cola"))
    kind, vocabulary_size, word = answers["encoder"]
    assert (kind, vocabulary_size) == ("BertForMaskedLM", len(tiny_models.WORDS))
    assert answers["words"] == [word]
    assert "string" in answers["signature"][0]
    assert "label" in answers["signature"][1]
    assert "score" in answers["signature"][1]


def check_version(client: MlflowClient, made: ModelToRegister, run_id: str, private: str) -> None:
    name = made.files.name
    version = client.get_model_version(name, "1")
    assert version.run_id == run_id
    assert version.tags[DIGEST_TAG] == made.manifest.digest
    assert len(version.tags) <= 8, version.tags
    assert "Score: mcc 0.5000 on development data (digest dddddddddddd)" in version.description
    assert evaluation_of(version) == made.evaluation
    local = client.get_model_version_download_uri(name, "1").removeprefix("file://")
    files = storage.list_files(local)
    assert "input_example.json" in files
    assert any(file.endswith("tokenizer.json") for file in files), files
    assert any(file.endswith(".safetensors") for file in files), files
    with open(os.path.join(local, "requirements.txt")) as stream:
        requirements = stream.read().split()
    assert [line.partition("==")[0] for line in requirements] == ["mlflow", "transformers", "torch"]
    for file in files:
        if not file.endswith(".safetensors"):
            text = storage.read_bytes(storage.join(local, file)).decode()
            assert f"{private}/{name}" not in text, f"{file} contains the model's path"
    (card,) = (file for file in files if file.endswith("model_card.md"))
    text = storage.read_bytes(storage.join(local, card)).decode()
    for said in ("## Data", "| train rows | 8,551 |", "| dev.accuracy | 0.75 |", "## Limits", 'name = "trial"'):
        assert said in text, said


def test_only_known_architectures_are_registered(tmp_path: Path) -> None:
    directory = str(tmp_path / "model")
    tiny_models.write_tiny_encoder(directory)
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace("BertForPreTraining", "BertForMultipleChoice"))
    with pytest.raises(InputError, match=r"BertForMultipleChoice.*cannot be registered"):
        assert ModelFiles("trial-x", directory, {}).pipeline_task


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("BertForPreTraining", None),
        ("BertLMHeadModel", "no pipeline of transformers scores texts"),
        ("LeftToRightForSequenceClassification", "classifies by the last token"),
        ("BiLstmForSequenceClassification", "has an LSTM on a BERT"),
        ("FeaturesForTokenClassification", "has an LSTM on a BERT's hidden states"),
        ("TwoDirectionsForTokenClassification", "read a text from opposite ends"),
        ("TwoDirectionsSegmentMeansForSequenceClassification", "read a text from opposite ends"),
        ("SegmentMeansForSequenceClassification", None),
    ],
)
def test_models_without_a_pipeline_say_why(tmp_path: Path, architecture: str, reason: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    obstacle = ModelFiles("trial-x", str(tmp_path), {}).obstacle
    assert obstacle is None if reason is None else reason in str(obstacle)


@pytest.mark.parametrize(
    ("kind", "call"),
    [("means-single", 'predict([{"text": "It returns a list."}])'), ("means", '"text_pair": "Another."}])')],
)
def test_the_card_of_segment_means_does_not_promise_transformers(
    kind: str, call: str, whole: WholeRecipe, tmp_path: Path
) -> None:
    written = models.write(models.Variant(kind, "cased"), tmp_path)
    statistics = statistics_with(TrialStatistics, metric="mcc", score=0.5)
    manifest = models.manifest_of(written.directory, "finetuning", {"max_seq_length": 16}, statistics)
    files = ModelFiles("trial-x", written.directory, manifest.config, takes_pairs=kind == "means")
    text = card_text(card_facts(whole, files, manifest))
    assert "library_name: mlflow\n" in text
    assert call in text
    assert "`mlflow.pyfunc` loads it, by code that the model contains" in text
    assert "transformers.pipeline" not in text


def test_means_of_a_left_to_right_encoder_are_not_registered(tmp_path: Path) -> None:
    config = {"architectures": ["SegmentMeansForSequenceClassification"], "is_decoder": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "this one reads left to right" in str(ModelFiles("trial-x", str(tmp_path), {}).obstacle)


def expected_answers(directory: str) -> list[dict[str, object]]:
    import transformers

    classify = transformers.pipeline("text-classification", model=directory, tokenizer=directory, device="cpu")
    return json.loads(json.dumps(classify(SENTENCES)))  # type: ignore[no-any-return]


def consume(uri: str, elsewhere: Path) -> dict[str, list[object]]:
    hidden = ("PYTHONPATH", "HF_HUB_OFFLINE", "MLFLOW_RUN_ID")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-c", textwrap.dedent(CONSUMER), uri, json.dumps(SENTENCES)]
    ended = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=elsewhere, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])  # type: ignore[no-any-return]
