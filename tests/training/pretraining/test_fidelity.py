"""Which settings are faithful to BERT, and that every deviation is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.parameters.requests import RunRequest
from pipelines.settings.examples import ExamplesConfig
from training.pretraining.fidelity import FAITHFUL, deviations, in_words
from training.settings.model import SHAPES, ModelConfig
from training.settings.pretraining import PretrainingConfig


def found(recipe: Path, *overrides: str) -> dict[str, tuple[Any, Any]]:
    whole = RunRequest(recipe=str(recipe), overrides=overrides).read()
    return deviations(whole.model, whole.pretraining, whole.examples.identity())


@pytest.mark.parametrize("name", ["bert-base.toml", "bert-large.toml"])
def test_the_faithful_recipes_deviate_in_nothing(repository: Path, name: str) -> None:
    assert found(repository / "flows" / "recipes" / name) == {}
    assert in_words({}) == "none"


def test_the_defaults_are_faithful_and_every_name_is_a_setting() -> None:
    sections = {"model": ModelConfig(), "pretraining": PretrainingConfig(), "examples": ExamplesConfig()}
    for section, settings in FAITHFUL.items():
        for key, value in settings.items():
            assert sections[section].model_dump()[key] == value, key


def test_the_modern_recipe_names_each_deviation(repository: Path) -> None:
    modern = found(repository / "flows" / "recipes" / "bert-base-modern.toml")
    assert {
        "model.hidden_act",
        "model.attention_probs_dropout_prob",
        "pretraining.optimizer",
        "pretraining.adam_bias_correction",
        "examples.masked_lm_prob",
        "examples.next_sentence",
    } <= modern.keys()


def test_a_deviation_is_told_in_words(repository: Path) -> None:
    recipe = repository / "flows" / "recipes" / "bert-base.toml"
    overrides = ("model.attention_probs_dropout_prob=0.0", "pretraining.adam_bias_correction=true")
    assert found(recipe, *overrides) == {
        "model.attention_probs_dropout_prob": (0.0, 0.1),
        "pretraining.adam_bias_correction": (True, False),
    }
    line = in_words(found(recipe, *overrides))
    assert line == "attention_probs_dropout_prob 0.0 (BERT: 0.1), adam_bias_correction true (BERT: false)"
    shares = found(recipe, "pretraining.masking=dynamic", "pretraining.mask_shares={mask = 1.0, random = 0.0}")
    assert "mask_shares mask 1.0/random 0.0 (BERT: mask 0.8/random 0.1)" in in_words(shares)
    # Size and length of a run are none: a small BERT is a BERT.
    assert found(recipe, "model.size=tiny", "pretraining.learning_rate=1e-3") == {}


def test_a_size_is_four_numbers_and_a_number_beside_it_prevails() -> None:
    large = ModelConfig.model_validate({"size": "large", "num_hidden_layers": 3})
    assert (large.hidden_size, large.num_attention_heads, large.intermediate_size) == (1024, 16, 4096)
    assert large.num_hidden_layers == 3
    for size, shape in SHAPES.items():
        named = ModelConfig.model_validate({"size": size})
        # The name is not part of a stage's key: the numbers are.
        assert named.identity() == ModelConfig.model_validate(shape).identity()
    with pytest.raises(ValidationError, match="'tiny', 'mini', 'small', 'medium', 'base' or 'large'"):
        ModelConfig.model_validate({"size": "huge"})


def test_settings_that_exclude_one_another_are_refused() -> None:
    with pytest.raises(ValidationError, match="offload_optimizer = true with zero_stage = 0"):
        PretrainingConfig(offload_optimizer=True, zero_stage=0)
    with pytest.raises(ValidationError, match="compile = true with zero_stage = 3"):
        PretrainingConfig(compile=True, zero_stage=3)
