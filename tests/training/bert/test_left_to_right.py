"""Causal attention against `transformers` on padded batches, and what may be loaded as which class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.training.synthetic_run import write_vocabulary

from pipelines.contract.errors import InputError
from training.bert.config_file import OWN_TYPE, read_config
from training.bert.heads import BertForPreTraining
from training.bert.huggingface import huggingface_config, load_into, read_weights, write_model
from training.bert.modeling import BertModel, initialize_weights
from training.bert.packing import PackedSequences, pack
from training.data.next_tokens import NextTokens
from training.distillation.student import read_teacher
from training.finetuning.classifier import BertForSequenceClassification
from training.settings.model import ModelConfig
from training.squad.heads import BertForQuestionAnswering
from training.tagging.problem import BertForTokenClassification

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ModelConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=40,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    attention="left_to_right",
)
VOCAB_SIZE = 61


def built(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    initialize_weights(model, 0.3, seed)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed + 1)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def random_batch(lengths: list[int], seed: int) -> tuple[list[np.ndarray], PackedSequences]:
    generator = np.random.default_rng(seed)
    rows = [generator.integers(1, VOCAB_SIZE, size) for size in lengths]
    sizes = np.array(lengths)
    return rows, pack(np.concatenate(rows), sizes, sizes)


def padded(rows: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and attention_mask, [B, S] int64."""
    width = max(len(row) for row in rows)
    ids, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.from_numpy(row)
        mask[index, : len(row)] = 1
    return ids, mask


@settings(max_examples=10, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=9), seed=st.integers(0, 1000))
def test_losses_and_gradients_equal_the_reference(lengths: list[int], seed: int) -> None:
    model = built(BertForPreTraining.masked_lm(CONFIG, VOCAB_SIZE), seed)
    assert isinstance(model, BertForPreTraining)
    config = transformers.BertConfig(**huggingface_config(CONFIG, VOCAB_SIZE, model.architecture))
    expected = getattr(transformers, model.architecture)(config)
    missing, unexpected = expected.load_state_dict(model.state_dict(), strict=False)
    assert set(missing) <= {"cls.predictions.decoder.bias"}
    assert not unexpected

    rows, packed = random_batch(lengths, seed)
    ids, mask = padded(rows)
    wanted = expected(input_ids=ids, attention_mask=mask, labels=torch.where(mask.bool(), ids, -100)).loss
    sizes = np.array(lengths)
    positions, labels = NextTokens().apply(
        np.concatenate(rows), sizes, np.zeros(len(rows), dtype=np.uint64), np.zeros(len(rows), dtype=np.int64)
    )
    output = model(packed, torch.from_numpy(positions), torch.from_numpy(labels), torch.zeros(len(rows)))
    loss = output.mlm_loss_sum / len(labels)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert output.nsp_loss_sum is None

    wanted.backward()
    loss.backward()
    theirs = dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        theirs_of_it = theirs[name].grad
        assert parameter.grad is not None
        assert theirs_of_it is not None
        torch.testing.assert_close(parameter.grad, theirs_of_it, atol=1e-5, rtol=1e-4, msg=name)


def test_a_token_depends_on_those_before_it_only() -> None:
    model = built(BertModel(CONFIG, VOCAB_SIZE, with_pooler=False), 3)
    rows, packed = random_batch([12, 5, 9], 1)
    before = model(packed)[0]
    rows[0][7] = (rows[0][7] + 1) % VOCAB_SIZE
    after = model(pack(np.concatenate(rows), np.array([12, 5, 9]), np.array([12, 5, 9])))[0]
    is_changed = (before != after).any(1)
    assert is_changed.nonzero().flatten().tolist() == [7, 8, 9, 10, 11]


def test_a_classifier_reads_the_last_token() -> None:
    model = built(BertForSequenceClassification(CONFIG, VOCAB_SIZE, 3), 5).eval()
    rows, packed = random_batch([12, 5, 9, 30], 2)
    logits_BC = model(packed)
    config = transformers.BertConfig(**huggingface_config(CONFIG, VOCAB_SIZE, "BertModel"))
    reference = transformers.BertModel(config, add_pooling_layer=False).eval()
    state = {name.removeprefix("bert."): value for name, value in model.state_dict().items()}
    reference.load_state_dict(state, strict=False)
    pooler, classifier = model.bert.pooler, model.classifier
    for row, logits_C in zip(rows, logits_BC, strict=True):
        last_H = reference(input_ids=torch.from_numpy(row)[None]).last_hidden_state[0, -1]
        torch.testing.assert_close(logits_C, classifier(torch.tanh(pooler.dense(last_H))), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: BertForTokenClassification(CONFIG, VOCAB_SIZE, 3), "BertForTokenClassification"),
        (lambda: BertForQuestionAnswering(CONFIG, VOCAB_SIZE), "BertForQuestionAnswering"),
    ],
)
def test_heads_on_tokens_equal_the_reference(ours: Callable[[], torch.nn.Module], theirs: str) -> None:
    model = built(ours(), 5).eval()
    settings = huggingface_config(CONFIG, VOCAB_SIZE, theirs, num_labels=3 if "Token" in theirs else 2)
    assert settings["model_type"] == "bert"
    reference = getattr(transformers, theirs)(transformers.BertConfig(**settings)).eval()
    reference.load_state_dict(model.state_dict())
    rows, packed = random_batch([12, 5, 9], 2)
    for row, logits_SC in zip(rows, torch.split(model(packed), [12, 5, 9]), strict=True):
        output = reference(input_ids=torch.from_numpy(row)[None])
        wanted = output.logits if "Token" in theirs else torch.stack([output.start_logits, output.end_logits], -1)
        torch.testing.assert_close(logits_SC, wanted[0], atol=1e-5, rtol=1e-4)


@pytest.fixture
def vocabulary(tmp_path: Path) -> tuple[str, int]:
    directory = str(tmp_path / "vocabulary")
    return directory, write_vocabulary(directory)


def test_an_encoder_is_loaded_by_its_class_of_transformers(tmp_path: Path, vocabulary: tuple[str, int]) -> None:
    directory, size = vocabulary
    model = built(BertForPreTraining.masked_lm(CONFIG, size), 7)
    assert isinstance(model, BertForPreTraining)
    exported = str(tmp_path / "encoder")
    write_model(exported, model.state_dict(), huggingface_config(CONFIG, size, model.architecture), directory)
    loaded, facts = transformers.AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert type(loaded).__name__ == "BertLMHeadModel"
    assert not facts["missing_keys"]
    assert not facts["unexpected_keys"]
    assert read_config(exported) == (CONFIG, size)
    again = BertForPreTraining.masked_lm(*read_config(exported))
    assert load_into(again, read_weights(exported), exported) == []
    with pytest.raises(InputError, match="is a left_to_right model; distillation needs a masked LM as teacher"):
        read_teacher(exported)


def test_a_classifier_is_not_loaded_by_a_class_that_reads_another_token(
    tmp_path: Path, vocabulary: tuple[str, int]
) -> None:
    directory, size = vocabulary
    model = built(BertForSequenceClassification(CONFIG, size, 2), 7)
    exported = str(tmp_path / "classifier")
    config = huggingface_config(CONFIG, size, "BertForSequenceClassification")
    write_model(exported, model.state_dict(), config, directory)
    with pytest.raises(ValueError, match=OWN_TYPE):
        transformers.AutoModelForSequenceClassification.from_pretrained(exported)
    assert read_config(exported) == (CONFIG, size)
    assert "transformers does not load it" in (tmp_path / "classifier" / "README.md").read_text()


def test_a_decoder_with_cross_attention_is_refused(tmp_path: Path) -> None:
    values = huggingface_config(CONFIG, 10, "BertLMHeadModel", add_cross_attention=True)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="add_cross_attention is set, so it is the decoder of another model"):
        read_config(str(tmp_path))
