"""What a model takes from an encoder with fewer words, positions or heads."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from training.bert.heads import BertForPreTraining
from training.bert.initial_weights import load_initial_weights, tiled, with_means_of_pieces
from training.bert.modeling import initialize_weights
from training.settings.model import ModelConfig

SMALL = ModelConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=10
)
WORDS, BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"


def model_of(vocab_size: int, seed: int, next_sentence: bool = True) -> BertForPreTraining:
    model = BertForPreTraining(SMALL, vocab_size, next_sentence)
    initialize_weights(model, 0.1, seed)
    with torch.no_grad():
        model.cls.predictions.bias.copy_(torch.arange(vocab_size) / 10)
    return model


def stored(model: BertForPreTraining, directory: object, dtype: torch.dtype = torch.float32) -> str:
    state = {
        name: tensor.to(dtype).clone() for name, tensor in model.state_dict().items() if not name.endswith("er.weight")
    }
    safetensors.torch.save_file(state, f"{directory}/model.safetensors")
    return str(directory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_words_have_the_mean_of_their_pieces(tmp_path: object, dtype: torch.dtype) -> None:
    source, model = model_of(7, 1), model_of(9, 2)
    entries = {2: (5, 6), 7: (4, 4, 1), 8: (0,)}
    changes = load_initial_weights(model, stored(source, tmp_path, dtype), entries)
    assert (changes.initialized, changes.extended, changes.dropped) == ([], {"vocabulary entries": 3}, [])
    for name in (WORDS, BIAS):
        old, new = source.state_dict()[name].to(dtype).float(), model.state_dict()[name]
        assert torch.equal(new[[0, 1, 3, 4, 5, 6]], old[[0, 1, 3, 4, 5, 6]])
        torch.testing.assert_close(new[2], (old[5] + old[6]) / 2)
        torch.testing.assert_close(new[7], (2 * old[4] + old[1]) / 3)
        assert torch.equal(new[8], old[0])


def test_rows_that_do_not_fit_stay_for_the_loader_to_refuse() -> None:
    rows = torch.ones(4, 2)
    assert with_means_of_pieces(rows, {1: (0,)}, 3) is rows
    assert with_means_of_pieces(rows, {1: (4,)}, 6) is rows


@pytest.mark.parametrize("count", [3, 4, 6, 7])
def test_positions_repeat_from_their_start(count: int) -> None:
    old = torch.randn(3, 2)
    assert torch.equal(tiled(old, count), torch.stack([old[index % 3] for index in range(count)]))


def test_parts_that_only_the_encoder_has_are_named(tmp_path: object) -> None:
    source = model_of(7, 1)
    changes = load_initial_weights(model_of(7, 2, next_sentence=False), stored(source, tmp_path), {})
    assert changes.dropped == ["next-sentence head", "pooler"]


def test_a_head_in_part_names_its_missing_parameters(tmp_path: object) -> None:
    directory = stored(model_of(7, 1), tmp_path)
    state = safetensors.torch.load_file(f"{directory}/model.safetensors")
    del state[BIAS]
    safetensors.torch.save_file(state, f"{directory}/model.safetensors")
    assert load_initial_weights(model_of(7, 2), directory, {}).initialized == [BIAS]
