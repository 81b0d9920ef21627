"""Two encoders against `transformers`, one on the rows as they are and one on the reversed rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.training.synthetic_run import write_vocabulary
from tests.training.bert.test_left_to_right import CONFIG as ONE_DIRECTION
from tests.training.bert.test_left_to_right import VOCAB_SIZE, built, padded, random_batch

from pipelines.contract.errors import InputError
from training.bert.config_file import OWN_TYPE, read_config
from training.bert.heads import TwoDirectionsForPreTraining, build_pretraining_model
from training.bert.huggingface import huggingface_config, load_into, read_weights, write_model
from training.bert.modeling import parameter_count
from training.bert.sizes import num_parameters
from training.bert.two_directions import TwoDirectionsModel
from training.data.next_tokens import NextTokens
from training.features.extractor import load_encoder
from training.finetuning.classifier import BertForSequenceClassification

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ONE_DIRECTION.model_copy(update={"attention": "two_directions"})
DIRECTIONS = ("left_to_right", "right_to_left")


def one_direction(model: TwoDirectionsForPreTraining, name: str) -> transformers.BertLMHeadModel:
    """The class of `transformers` with the weights of one direction."""
    config = transformers.BertConfig(**huggingface_config(ONE_DIRECTION, VOCAB_SIZE, "BertLMHeadModel"))
    state = {
        key.replace(f"bert.{name}.", "bert.").replace(f"cls.{name}.", "cls."): value
        for key, value in model.state_dict().items()
        if f".{name}." in key
    }
    reference = transformers.BertLMHeadModel(config).eval()
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert set(missing) <= {"cls.predictions.decoder.bias"}
    assert not unexpected
    return reference


def in_direction(rows: list[np.ndarray], name: str) -> list[np.ndarray]:
    return rows if name == "left_to_right" else [row[::-1].copy() for row in rows]


@settings(max_examples=8, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=9), seed=st.integers(0, 1000))
def test_losses_and_gradients_are_those_of_two_models(lengths: list[int], seed: int) -> None:
    model = built(build_pretraining_model(CONFIG, VOCAB_SIZE), seed)
    assert isinstance(model, TwoDirectionsForPreTraining)
    rows, packed = random_batch(lengths, seed)
    keys, counts = np.zeros(len(rows), dtype=np.uint64), np.zeros(len(rows), dtype=np.int64)
    positions, labels = NextTokens().apply(np.concatenate(rows), np.array(lengths), keys, counts)
    output = model(packed, torch.from_numpy(positions), torch.from_numpy(labels), torch.zeros(len(rows)))
    output.mlm_loss_sum.backward()

    ours, loss = dict(model.named_parameters()), 0.0
    for name in DIRECTIONS:
        reference = one_direction(model, name)
        ids, mask = padded(in_direction(rows, name))
        mean = reference(input_ids=ids, attention_mask=mask, labels=torch.where(mask.bool(), ids, -100)).loss
        (mean * len(labels)).backward()
        loss += mean.item() * len(labels)
        for key, parameter in reference.named_parameters():
            own = ours[key.replace("bert.", f"bert.{name}.", 1).replace("cls.", f"cls.{name}.", 1)]
            torch.testing.assert_close(own.grad, parameter.grad, atol=2e-4, rtol=1e-3, msg=f"{name}: {key}")
    assert output.mlm_loss_sum.item() == pytest.approx(loss, rel=1e-5)


def test_outputs_are_joined_token_by_token_and_pooled_after_the_last_token_of_each_direction() -> None:
    model = built(TwoDirectionsModel(CONFIG, VOCAB_SIZE), 3).eval()
    rows, packed = random_batch([12, 5, 9, 30], 1)
    hidden_TF, pooled_BF = model(packed)
    first = 0
    for row, pooled_F in zip(rows, pooled_BF, strict=True):
        states = {}
        for name, tokens in zip(DIRECTIONS, (row, row[::-1].copy()), strict=True):
            config = transformers.BertConfig(**huggingface_config(ONE_DIRECTION, VOCAB_SIZE, "BertModel"))
            reference = transformers.BertModel(config, add_pooling_layer=False).eval()
            reference.load_state_dict(getattr(model, name).state_dict())
            states[name] = reference(input_ids=torch.from_numpy(tokens)[None]).last_hidden_state[0]
        expected_SF = torch.cat([states["left_to_right"], states["right_to_left"].flip(0)], 1)
        torch.testing.assert_close(hidden_TF[first : first + len(row)], expected_SF, atol=1e-5, rtol=1e-4)
        read_F = torch.cat([states["left_to_right"][-1], states["right_to_left"][-1]])
        torch.testing.assert_close(pooled_F, torch.tanh(model.pooler.dense(read_F)), atol=1e-5, rtol=1e-4)
        first += len(row)


def test_a_tokens_score_is_the_sum_over_what_precedes_and_what_follows_it() -> None:
    model = built(build_pretraining_model(CONFIG, VOCAB_SIZE), 9).eval()
    assert isinstance(model, TwoDirectionsForPreTraining)
    rows, packed = random_batch([7, 4], 2)
    positions = torch.tensor([0, 1, 2, 3, 4, 7, 8])
    ids = packed.input_ids_T[positions + 1]
    found_M = model.log_probabilities(packed, positions, ids)
    expected = []
    for row in rows:
        for place in range(1, len(row) - 1):
            score = 0.0
            for name, before in zip(DIRECTIONS, (row[:place], row[:place:-1].copy()), strict=True):
                logits = one_direction(model, name)(input_ids=torch.from_numpy(before)[None]).logits[0, -1]
                score += torch.log_softmax(logits, 0)[row[place]].item()
            expected.append(score)
    assert found_M.tolist() == pytest.approx(expected, abs=1e-4)


def test_parameters_are_counted() -> None:
    model = build_pretraining_model(CONFIG, VOCAB_SIZE)
    assert parameter_count(model) == num_parameters(CONFIG, VOCAB_SIZE, with_pairs=False)


def test_its_directory_is_read_back_and_refused_by_transformers_and_by_what_reads_one_encoder(tmp_path: Path) -> None:
    vocabulary, exported = str(tmp_path / "vocabulary"), str(tmp_path / "encoder")
    size = write_vocabulary(vocabulary)
    model = built(build_pretraining_model(CONFIG, size), 7)
    assert isinstance(model, TwoDirectionsForPreTraining)
    write_model(exported, model.state_dict(), huggingface_config(CONFIG, size, model.architecture), vocabulary)
    assert read_config(exported) == (CONFIG, size)
    again = build_pretraining_model(*read_config(exported))
    assert load_into(again, read_weights(exported), exported) == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    classifier = BertForSequenceClassification(CONFIG, size, 2)
    kept = load_into(classifier, read_weights(exported), exported, optional=("classifier.", "bert.pooler."))
    assert sorted({name.split(".")[0] for name in kept}) == ["bert", "classifier"]
    with pytest.raises(ValueError, match=OWN_TYPE):
        transformers.AutoModel.from_pretrained(exported)
    with pytest.raises(InputError, match="has two encoders; features are extracted from one"):
        load_encoder(exported)
    assert "opposite ends" in (tmp_path / "encoder" / "README.md").read_text()
