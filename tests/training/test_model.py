"""The packed model against transformers.BertForPreTraining on padded tokens, and Hugging Face directories both ways."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, pipeline
from transformers import BertForPreTraining as ReferenceBert
from transformers import BertForSequenceClassification as ReferenceClassifier

from pipelines.recipe import InputError
from training.attention import packed_attention, plan_attention
from training.config import ModelConfig
from training.heads import BertForPreTraining, BertForSequenceClassification
from training.interchange import huggingface_config, load_into, read_config, read_weights, write_model
from training.losses import linear_cross_entropy, pretraining_loss
from training.modeling import initialize_weights, parameter_count
from training.packing import pack

TOLERANCE = 1e-5


def built(config: ModelConfig, vocab_size: int, seed: int) -> BertForPreTraining:
    model = BertForPreTraining(config, vocab_size)
    initialize_weights(model, 0.1, seed)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed + 1)
        for parameter in model.parameters():
            # Biases and LayerNorm scales must take part as well.
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.train(False)
    return model


def reference(model: BertForPreTraining, config: ModelConfig, vocab_size: int) -> ReferenceBert:
    expected = ReferenceBert(BertConfig(**huggingface_config(config, vocab_size, "BertForPreTraining")))
    expected.train(False)
    missing, unexpected = expected.load_state_dict(model.state_dict(), strict=False)
    assert set(missing) <= {"cls.predictions.decoder.bias"}
    assert not unexpected
    return expected


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    heads=st.integers(1, 3),
    head_size=st.sampled_from([4, 8]),
    layers=st.integers(1, 3),
    act=st.sampled_from(["gelu", "gelu_new"]),
    lengths=st.lists(st.integers(4, 40), min_size=1, max_size=9),
    seed=st.integers(0, 1000),
)
def test_logits_losses_and_gradients_equal_the_reference(
    heads: int, head_size: int, layers: int, act: str, lengths: list[int], seed: int
) -> None:
    vocab_size = 61
    config = ModelConfig.model_validate(
        {
            "hidden_size": heads * head_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 24,
            "max_position_embeddings": 40,
            "hidden_act": act,
        }
    )
    model = built(config, vocab_size, seed)
    expected = reference(model, config, vocab_size)
    generator = np.random.default_rng(seed)
    sizes = np.array(lengths)
    # Id 0 is left out: the reference treats it as padding and gives its embedding no gradient.
    rows = [generator.integers(1, vocab_size, size) for size in lengths]
    starts = np.array([int(generator.integers(2, size)) for size in lengths])
    packed = pack(np.concatenate(rows), sizes, starts)
    masked = [np.sort(generator.choice(size, max(1, size // 5), replace=False)) for size in lengths]
    labels = [generator.integers(1, vocab_size, len(positions)) for positions in masked]
    first = np.cumsum(sizes) - sizes
    positions_M = torch.from_numpy(np.concatenate([m + f for m, f in zip(masked, first, strict=True)]))
    labels_M = torch.from_numpy(np.concatenate(labels))
    nsp_B = torch.from_numpy(generator.integers(0, 2, len(lengths)))

    width = max(lengths)
    ids, mask, types = (torch.zeros(len(lengths), width, dtype=torch.long) for _ in range(3))
    targets = torch.full((len(lengths), width), -100)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.from_numpy(row)
        mask[index, : len(row)] = 1
        types[index, starts[index] : len(row)] = 1
        targets[index, masked[index]] = torch.from_numpy(labels[index])
    wanted = expected(
        input_ids=ids, attention_mask=mask, token_type_ids=types, labels=targets, next_sentence_label=nsp_B
    )
    output = model(packed, positions_M, labels_M, nsp_B)
    count = len(labels_M)
    mlm_loss = torch.nn.functional.cross_entropy(wanted.prediction_logits.view(-1, vocab_size), targets.view(-1))
    assert output.mlm_loss_sum.item() / count == pytest.approx(mlm_loss.item(), abs=TOLERANCE)
    # Scaled to the plain mean, which the reference takes; ours adds 1e-5 to the denominator as the released code does.
    loss = pretraining_loss(output.mlm_loss_sum * (count + 1e-5) / count, output.nsp_loss_sum, count, len(lengths))
    assert loss.item() == pytest.approx(wanted.loss.item(), abs=TOLERANCE)

    hidden_TH, pooled_BH = model.bert(packed)
    real = mask.bool()
    torch.testing.assert_close(
        model.cls.predictions.logits(hidden_TH), wanted.prediction_logits[real], atol=TOLERANCE, rtol=TOLERANCE
    )
    torch.testing.assert_close(
        model.cls.seq_relationship(pooled_BH), wanted.seq_relationship_logits, atol=TOLERANCE, rtol=TOLERANCE
    )
    top = wanted.prediction_logits[targets >= 0].argmax(1)
    assert int(output.mlm_correct) == int((top == targets[targets >= 0]).sum())

    torch.autograd.backward(loss)
    torch.autograd.backward(wanted.loss)
    gradients = {name: parameter.grad for name, parameter in expected.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=TOLERANCE, rtol=TOLERANCE, msg=name)


@pytest.mark.parametrize(("name", "millions"), [("base", 110), ("large", 336)])
def test_sizes_of_the_paper(name: str, millions: int) -> None:
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    config = ModelConfig.model_validate(large if name == "large" else {})
    with torch.device("meta"):
        model = BertForPreTraining(config, 30_522)
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        expected = ReferenceBert(BertConfig(**huggingface_config(config, 30_522, "BertForPreTraining")))
    assert round(parameter_count(model) / 1e6) == millions
    wanted = {key: value.shape for key, value in expected.state_dict().items()}
    assert shapes == {key: shape for key, shape in wanted.items() if key != "cls.predictions.decoder.bias"}


def test_bins_compute_little_padding_and_every_token_once() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 129, 200)
    plan = plan_attention(np.concatenate([[0], np.cumsum(lengths)]))
    computed = sum(part.num_sequences * part.max_seqlen for part in plan.bins)
    assert lengths.sum() <= computed <= lengths.sum() / (1 - 0.125)
    assert plan.restore_T is not None
    assert len(set(plan.restore_T.tolist())) == lengths.sum()


def test_attention_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(50, 2, 4) for _ in range(3))
    cu_seqlens = torch.tensor([0, 20, 50], dtype=torch.int32)
    plain = packed_attention(query, key, value, cu_seqlens, 30, 0.0)
    dropped = torch.stack([packed_attention(query, key, value, cu_seqlens, 30, 0.2) for _ in range(2000)])
    assert not torch.equal(dropped[0], plain)
    torch.testing.assert_close(dropped.mean(0), plain, atol=0.05, rtol=0.0)


def test_fused_cross_entropy_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("training.losses", fromlist=["x"])._CHUNK_ELEMENTS, "cpu", 16 * 31)
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((50, 7), (31, 7), (31,)))
    labels = torch.randint(0, 31, (50,))
    loss, correct = linear_cross_entropy(hidden, weight, bias, labels)
    torch.autograd.backward(3.0 * loss)
    found = [tensor.grad.clone() for tensor in (hidden, weight, bias) if tensor.grad is not None]
    for tensor in (hidden, weight, bias):
        tensor.grad = None
    logits = hidden @ weight.t() + bias
    wanted = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.autograd.backward(3.0 * wanted)
    torch.testing.assert_close(loss, wanted)
    assert int(correct) == int((logits.argmax(1) == labels).sum())
    for gradient, tensor in zip(found, (hidden, weight, bias), strict=True):
        torch.testing.assert_close(gradient, tensor.grad, atol=1e-4, rtol=1e-5)


@pytest.fixture(scope="module")
def exported(make_workspace: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """A random encoder written as a Hugging Face directory, and the model it came from."""
    workspace = make_workspace("interchange")
    vocabulary = os.path.join(workspace.path, "vocabulary")
    config = ModelConfig.model_validate(
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    )
    model = built(config, 206, 3)
    directory = str(tmp_path_factory.mktemp("encoder"))
    write_model(directory, model.state_dict(), huggingface_config(config, 206, "BertForPreTraining"), vocabulary)
    return directory, model


def test_round_trip_is_bit_exact(exported: tuple[str, BertForPreTraining], tmp_path: Any) -> None:
    directory, model = exported
    config, vocab_size = read_config(directory)
    copy = BertForPreTraining(config, vocab_size)
    assert load_into(copy, read_weights(directory), directory) == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, copy.state_dict()[name]), name

    # Through transformers and back, with and without heads, with and without the prefix.
    ReferenceBert.from_pretrained(directory).save_pretrained(tmp_path / "whole")
    AutoModel.from_pretrained(directory).save_pretrained(tmp_path / "bare")
    whole, bare = (read_weights(str(tmp_path / name)) for name in ("whole", "bare"))
    for name, parameter in model.named_parameters():
        assert torch.equal(whole[name], parameter), name
        if name.startswith("bert."):
            assert torch.equal(bare[name], parameter), name
    again = BertForPreTraining(*read_config(str(tmp_path / "bare")))
    assert all(name.startswith("cls.") for name in load_into(again, bare, "bare", optional=("cls.",)))


def test_transformers_loads_it_and_computes_the_same(exported: tuple[str, BertForPreTraining]) -> None:
    directory, model = exported
    ids = np.array([2, 10, 11, 4, 13, 3])
    packed = pack(ids, np.array([6]), np.array([6]))
    hidden_TH, _ = model.bert(packed)
    loaders: tuple[Any, ...] = (ReferenceBert, AutoModelForMaskedLM)
    for loader in loaders:
        loaded, report = loader.from_pretrained(directory, output_loading_info=True)
        assert not report["missing_keys"], report
        output = loaded(torch.from_numpy(ids)[None])
        logits = output.prediction_logits if loader is ReferenceBert else output.logits
        torch.testing.assert_close(logits[0], model.cls.predictions.logits(hidden_TH), atol=TOLERANCE, rtol=TOLERANCE)
    encoder = AutoModel.from_pretrained(directory)
    torch.testing.assert_close(
        encoder(torch.from_numpy(ids)[None]).last_hidden_state[0], hidden_TH, atol=TOLERANCE, rtol=TOLERANCE
    )
    fill = pipeline("fill-mask", model=directory, tokenizer=directory)
    assert len(fill("w5 w6 [MASK] w8", top_k=3)) == 3


def test_classifier_equals_the_reference(exported: tuple[str, BertForPreTraining], tmp_path: Any) -> None:
    directory, _ = exported
    config, vocab_size = read_config(directory)
    model = BertForSequenceClassification(config, vocab_size, 3).eval()
    initialize_weights(model, 0.1, 5)
    kept = load_into(model, read_weights(directory), directory, optional=("classifier.",))
    assert kept == ["classifier.weight", "classifier.bias"]
    labels = {"id2label": {str(index): f"l{index}" for index in range(3)}}
    settings_of = huggingface_config(config, vocab_size, "BertForSequenceClassification", **labels)
    write_model(str(tmp_path), model.state_dict(), settings_of, directory)
    loaded = ReferenceClassifier.from_pretrained(tmp_path)
    ids = np.array([2, 10, 11, 3, 13, 3])
    torch.testing.assert_close(
        loaded(torch.from_numpy(ids)[None]).logits,
        model(pack(ids, np.array([6]), np.array([6]))),
        atol=TOLERANCE,
        rtol=TOLERANCE,
    )


def test_foreign_directories_are_refused_in_one_line(tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        read_config(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta", "vocab_size": 5}))
    with pytest.raises(InputError, match="'roberta', not 'bert'"):
        read_config(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="not a readable safetensors"):
        read_weights(str(tmp_path))
    with pytest.raises(InputError, match=r"lacks the weight bert\.embeddings"):
        load_into(BertForPreTraining(ModelConfig(hidden_size=12), 9), {}, "somewhere")
