"""Where encoders come from: directories, workspaces, and a real MLflow store as flows/registry fills it."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import transformers
from huggingface_hub import ModelCard
from tests.support.flows.database_templates import install_mlflow_database
from tests.support.tokenizer_directories import WORDS

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, record_of, write_manifest
from pipelines.inputs import registered_models
from pipelines.inputs.registered_models import CACHE_VARIABLE
from pipelines.settings.vocabulary import VocabularyConfig
from pipelines.vocabularies.reading import read_vocabulary
from training.bert.heads import BertForPreTraining
from training.bert.huggingface import huggingface_config, write_model
from training.bert.modeling import chosen_layers, initialize_weights
from training.features.encoder_arguments import add_encoder_arguments, parse_encoder_arguments
from training.features.extractor import FeatureExtractor, load_encoder
from training.finetuning.classifier import BertForSequenceClassification
from training.settings.model import ModelConfig
from training.stages.encoders import encoder_digest, encoder_directory

CONFIG = ModelConfig.model_validate(
    {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
)
LINES = ["w1 w2 w3 .", "W4, w5"]
KINDS: dict[str, tuple[str, Any, Any]] = {
    "encoder": ("fill-mask", BertForPreTraining, transformers.AutoModelForMaskedLM),
    "cola": ("text-classification", BertForSequenceClassification, transformers.AutoModelForSequenceClassification),
}


def write_directory(directory: str, name: str, vocabulary: str, seed: int) -> None:
    _, kind, _ = KINDS[name]
    size = len(Path(vocabulary, "vocab.txt").read_text().splitlines())
    model = kind(CONFIG, size) if name == "encoder" else kind(CONFIG, size, 2)
    initialize_weights(model, 0.3, seed)
    write_model(directory, model.state_dict(), huggingface_config(CONFIG, size, kind.__name__), vocabulary)


def register(directory: str, name: str, experiment: str) -> None:
    """Log and register a directory as flows/registry/registration.py does."""
    task, _, loader = KINDS[name]
    model = loader.from_pretrained(directory)
    pipeline = transformers.pipeline(
        task, model=model, tokenizer=transformers.AutoTokenizer.from_pretrained(directory), device="cpu"
    )
    with mlflow.start_run(experiment_id=experiment):
        mlflow.transformers.log_model(
            pipeline,
            name=name,
            task=task,
            model_card=ModelCard("---\nlicense: unknown\n---\n"),
            pip_requirements=["torch"],
            registered_model_name=name,
        )


def vectors(directory: str) -> np.ndarray:
    encoder = load_encoder(directory)
    return FeatureExtractor(encoder.model, encoder.tokenizer, chosen_layers([-1, 0], 1), "mean", 64).line_vectors(LINES)


@pytest.fixture(scope="module")
def vocabulary(make_workspace: Callable[[str], Any]) -> str:
    return os.path.join(make_workspace("encoders").path, "vocabulary")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with a vocabulary that has pieces of words."""
    directory = tmp_path_factory.mktemp("pieces")
    (directory / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')
    return str(directory)


@pytest.fixture(scope="module")
def registry(vocabulary: str, pieces: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store with version 1 of `cola`, versions 1 and 2 of `encoder` and the alias champion on 1; (uri, originals)."""
    folder = str(tmp_path_factory.mktemp("registry"))
    address = os.environ.pop("MLFLOW_TRACKING_URI", None)
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    uri = install_mlflow_database(f"sqlite:///{folder}/mlflow.db")
    originals = {}
    mlflow.set_tracking_uri(uri)
    try:
        experiment = mlflow.create_experiment("encoders", artifact_location=f"file://{folder}/artifacts")
        for name, seed in (("encoder", 1), ("cola", 2), ("encoder", 3)):
            originals[name, seed] = f"{folder}/{name}-{seed}"
            write_directory(originals[name, seed], name, pieces if name == "cola" else vocabulary, seed)
            register(originals[name, seed], name, experiment)
        mlflow.MlflowClient().set_registered_model_alias("encoder", "champion", "1")
    finally:
        # It writes the variable as well.
        mlflow.set_tracking_uri(before)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if address is not None:
            os.environ["MLFLOW_TRACKING_URI"] = address
    return uri, originals


@pytest.fixture
def cache(registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry[0])
    monkeypatch.setenv(CACHE_VARIABLE, f"{tmp_path}/cache")
    return f"{tmp_path}/cache/models"


@pytest.mark.slow
def test_a_registered_encoder_is_the_one_that_was_registered(registry: Any, cache: str) -> None:
    _, originals = registry
    directory = encoder_directory("models:/encoder@champion")
    assert os.path.dirname(directory) == cache
    np.testing.assert_array_equal(vectors(directory), vectors(originals["encoder", 1]))
    # A fine-tuned one is an encoder as well.
    classifier = encoder_directory("models:/cola/1")
    np.testing.assert_array_equal(vectors(classifier), vectors(originals["cola", 2]))
    assert classifier != directory
    transformers.AutoTokenizer.from_pretrained(directory)
    # The same URI brings its vocabulary.
    registered, original = (
        read_vocabulary(VocabularyConfig.model_validate({"from": origin}))
        for origin in ("models:/cola/1", originals["cola", 2])
    )
    assert registered.tokens == tuple(WORDS)
    assert registered.digest == original.digest


@pytest.mark.slow
def test_the_cache_follows_versions_and_moved_aliases(
    registry: Any, cache: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, _ = registry
    client = mlflow.MlflowClient(uri)
    first = encoder_directory("models:/encoder@champion")
    assert "fetching models:/encoder@champion" in capsys.readouterr().out
    assert encoder_directory("models:/encoder/1") == first
    assert capsys.readouterr().out == ""
    try:
        client.set_registered_model_alias("encoder", "champion", "2")
        second = encoder_directory("models:/encoder@champion")
    finally:
        client.set_registered_model_alias("encoder", "champion", "1")
    assert second != first
    assert encoder_digest(second) != encoder_digest(first)
    run_id = client.get_model_version("encoder", "2").run_id
    assert encoder_directory(f"runs:/{run_id}/encoder") == second
    assert sorted(os.listdir(cache)) == sorted(os.path.basename(path) for path in (first, second))

    # Another process puts the same model there while this one is downloading.
    download = registered_models._download

    def slow(uri: str, destination: str, shown: str) -> str:
        result = download(uri, destination, shown)
        if uri == shown:
            shutil.copytree(second, first)
        return result

    shutil.rmtree(first)
    monkeypatch.setattr(registered_models, "_download", slow)
    assert encoder_directory("models:/encoder@champion") == first
    assert len(os.listdir(cache)) == 2


@pytest.mark.slow
def test_a_broken_download_leaves_nothing(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    download = registered_models._download

    def incomplete(uri: str, destination: str, shown: str) -> str:
        result = download(uri, destination, shown)
        if uri == shown:
            os.remove(f"{result}/model/model.safetensors")
        return result

    monkeypatch.setattr(registered_models, "_download", incomplete)
    with pytest.raises(InputError, match="no weights"):
        encoder_directory("models:/encoder/1")
    assert os.listdir(cache) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("models:/encoder@absent", "Registered model alias absent not found"),
        ("models:/absent/1", "Registered Model with name=absent not found"),
        ("models:/encoder/7", "version=7) not found"),
        ("runs:/0123/encoder", "Run with id=0123 not found"),
        ("models:/", "check name, version or alias"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_what_mlflow_does_not_have_is_one_line(source: str, message: str) -> None:
    with pytest.raises(InputError, match=r"\S") as caught:
        encoder_directory(source)
    assert str(caught.value).startswith(f"{source}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mlflow_needs_an_address_and_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, f"{tmp_path}/cache")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI is not set"):
        encoder_directory("models:/encoder@champion")
    assert os.listdir(tmp_path) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", raising=False)
    with pytest.raises(InputError, match=r"cannot be fetched from MLflow \(API request to .* failed\); check"):
        encoder_directory("models:/encoder@champion")
    assert "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR" not in os.environ


@pytest.mark.slow
def test_directories_and_workspaces(vocabulary: str, tmp_path: Path) -> None:
    directory = f"{tmp_path}/workspace/pretraining/encoder"
    write_directory(directory, "encoder", vocabulary, 1)
    assert encoder_directory(directory) == directory
    assert encoder_directory(f"file://{directory}") == directory
    with pytest.raises(InputError, match="not complete"):
        encoder_directory(f"{tmp_path}/workspace")
    key = StageKey("pretraining", 1, {}, {})
    write_manifest(f"{tmp_path}/workspace/pretraining", key.manifest([], {}, "test"))
    assert encoder_directory(f"{tmp_path}/workspace") == directory

    digest = encoder_digest(directory)
    storage.write_bytes(f"{directory}/notes.md", b"not part of the model")
    assert encoder_digest(directory) == digest
    storage.write_bytes(f"{directory}/tokenizer.json", storage.read_bytes(f"{directory}/tokenizer.json") + b"\n")
    assert encoder_digest(directory) != digest

    for name, message in (
        ("model.safetensors", "no weights"),
        ("config.json", "neither config.json"),
    ):
        broken = shutil.copytree(directory, f"{tmp_path}/without-{name}")
        os.remove(f"{broken}/{name}")
        with pytest.raises(InputError, match=message):
            encoder_directory(str(broken))
    for name in ("vocab.txt", "tokenizer.json"):
        os.remove(f"{directory}/{name}")
    with pytest.raises(InputError, match=r"neither vocab\.txt nor tokenizer\.json"):
        encoder_directory(directory)


@pytest.mark.parametrize(
    ("source", "message"), [("bert-base-uncased", "models:/NAME@champion"), ("ftp://host/x", "use a local path, s3://")]
)
def test_other_sources_are_refused(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder_directory(source)


@pytest.mark.parametrize("words", [["--layers", "-1,-2"], ["--layers=-1,-2"], ["--layers", "-1, -2"]])
def test_negative_layers_are_no_options(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    add_encoder_arguments(parser, layers="0")
    assert parse_encoder_arguments(parser, ["--model", "x", *words]).layers == [-1, -2]
    assert parse_encoder_arguments(parser, ["--model", "x"]).layers == [0]


def test_a_damaged_encoder_of_a_stage_is_refused_wherever_it_is_named(tmp_path: Path) -> None:
    stage = str(tmp_path / "run/pretraining")
    for name, data in (("config.json", b"{}"), ("vocab.txt", b"[PAD]\n"), ("model.safetensors", bytes(64))):
        storage.write_bytes(f"{stage}/encoder/{name}", data)
    storage.write_bytes(f"{stage}/encoder/README.md", b"card")
    records = [record_of(stage, name, 0) for name in storage.list_files(stage)]
    write_manifest(stage, StageKey("pretraining", 1, {}, {}).manifest(records, {}, "1"))
    storage.write_bytes(f"{stage}/encoder/README.md", b"a person's words")
    for source in (str(tmp_path / "run"), f"{stage}/encoder/"):
        assert encoder_directory(source).rstrip("/") == f"{stage}/encoder"
    storage.write_bytes(f"{stage}/encoder/model.safetensors", bytes(63) + b"\1")
    for source in (str(tmp_path / "run"), f"{stage}/encoder/"):
        with pytest.raises(InputError, match=r"encoder/model\.safetensors: damaged"):
            encoder_directory(source)
    # Next to an encoder from elsewhere, a file with the manifest's name is ignored.
    storage.write_bytes(f"{stage}/manifest.json", b'{"name": "a page"}')
    assert encoder_directory(f"{stage}/encoder")


def test_without_mlflow_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, f"{tmp_path}/cache")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"^models:/encoder/1: .* needs MLflow .*pip install 'clozeworks\[training\]'"):
        encoder_directory("models:/encoder/1")
