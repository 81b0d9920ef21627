"""The architecture and the stage key that follow from an initial encoder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.training.released_encoder import write_released

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey
from pipelines.contract.recipe import Recipe, read_recipe
from training.settings.model import ModelConfig
from training.stages.finetuning import random_model
from training.stages.initial_encoder import continued_model, model_at_hand
from training.stages.pretraining import pretraining_inputs
from training.stages.sections import FinetuningSections, PretrainingSections

ENCODER = ModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)


def model_of(table: dict[str, Any]) -> ModelConfig:
    return continued_model(ModelConfig.model_validate(table), ENCODER, "bert", "r.toml")


def test_the_model_need_not_be_repeated() -> None:
    assert model_of({}).identity() == ENCODER.identity()
    assert model_of({"num_hidden_layers": 2, "hidden_act": "gelu"}).identity() == ENCODER.identity()
    changed = model_of(
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.2, "max_position_embeddings": 900}
    )
    differing = {name for name, value in changed.identity().items() if value != ENCODER.identity()[name]}
    assert differing == {"hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings"}
    assert continued_model(changed, ENCODER, "bert", "r.toml").identity() == changed.identity()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"intermediate_size": 65}, "model.intermediate_size = 65, but pretraining.initial_encoder = 'bert' has 64"),
        ({"num_hidden_layers": 3}, "model.num_hidden_layers = 3, but pretraining.initial_encoder = 'bert' has 2"),
        (
            {"hidden_act": "gelu_new"},
            "'gelu_new', but pretraining.initial_encoder = 'bert' has 'gelu', and its weights",
        ),
        ({"layer_norm_eps": 1e-6}, "model.layer_norm_eps = 1e-06"),
        ({"max_position_embeddings": 500}, "has 512, and positions can be added only"),
        ({"size": "large"}, "remove the key (or model.size)"),
    ],
)
def test_a_contradiction_is_refused_with_both_values(table: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=r"^r\.toml: model\.") as caught:
        model_of(table)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def workspace(make_workspace: Callable[[str], Any]) -> Any:
    return make_workspace("stage")


@pytest.fixture(scope="module")
def encoder(workspace: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = str(tmp_path_factory.mktemp("released") / "bert")
    write_released(directory, f"{workspace.path}/vocabulary", max_position_embeddings=80)
    return directory


def recipe_without_model(workspace: Any, place: Path, *overrides: str) -> Recipe:
    text = Path(workspace.recipe).read_text()
    path = Path(place, "without_model.toml")
    path.write_text(text[: text.index("[model]")] + text[text.index("[pretraining]") :])
    return read_recipe(str(path), [f"run.workspace={json.dumps(workspace.path)}", *overrides])


def test_the_key_follows_the_files_and_not_their_place(workspace: Any, encoder: str, tmp_path: Path) -> None:
    plain = pretraining_inputs(PretrainingSections.of(recipe_without_model(workspace, tmp_path)))
    assert plain.initial is None
    assert sorted(plain.key.inputs) == ["examples", "vocabulary"]

    def key_of(source: object, *overrides: str) -> StageKey:
        chosen = f"pretraining.initial_encoder={json.dumps(str(source))}"
        recipe = recipe_without_model(workspace, tmp_path, chosen, *overrides)
        return pretraining_inputs(PretrainingSections.of(recipe)).key

    first = key_of(encoder)
    assert first.config["model"]["max_position_embeddings"] == 80
    assert "initial_encoder" not in first.config["pretraining"]
    moved = shutil.copytree(encoder, tmp_path / "moved")
    assert key_of(moved).digest == first.digest
    with open(moved / "model.safetensors", "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\1")
    assert key_of(moved).digest != first.digest
    assert key_of(moved).config == first.config

    with pytest.raises(InputError, match=r"model\.max_position_embeddings = 64, but .* has 80"):
        key_of(encoder, "model.max_position_embeddings=64")
    with pytest.raises(InputError, match=r"exceeds model\.max_position_embeddings = 80"):
        key_of(encoder, "pretraining.phases.0.max_seq_length=96")
    with pytest.raises(InputError, match="no such directory"):
        key_of(tmp_path / "absent")


def test_trials_from_random_weights_have_the_same_architecture(workspace: Any, encoder: str, tmp_path: Path) -> None:
    source = f"pretraining.initial_encoder={json.dumps(encoder)}"
    recipe = recipe_without_model(workspace, tmp_path, source, "model.hidden_dropout_prob=0.0")
    model = random_model(FinetuningSections.of(recipe))
    assert (model.hidden_size, model.max_position_embeddings, model.hidden_dropout_prob) == (32, 80, 0.0)


def test_nothing_is_fetched_to_know_the_model(encoder: str, tmp_path: Path) -> None:
    own = ModelConfig()
    assert model_at_hand(own, None, "r.toml") is own
    for source in ("models:/bert@champion", str(tmp_path / "absent"), "s3://bucket/bert"):
        assert model_at_hand(own, source, "r.toml") is None
    found = model_at_hand(own, encoder, "r.toml")
    assert found is not None
    assert found.hidden_size == 32
    code = (
        "import sys; from training.stages.initial_encoder import model_at_hand; from training.settings.model import "
        f"ModelConfig; model_at_hand(ModelConfig(), {encoder!r}, 'r'); "
        "print({'torch', 'mlflow', 'transformers'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout == "set()\n"
