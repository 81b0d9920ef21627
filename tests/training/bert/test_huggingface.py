"""Hugging Face directories both ways: what transformers writes is read, and what is written transformers loads."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertForMaskedLM, pipeline
from transformers import BertForPreTraining as ReferenceBert
from transformers import BertForSequenceClassification as ReferenceClassifier

from pipelines.contract.errors import InputError
from training.bert.config_file import read_config
from training.bert.heads import BertForPreTraining
from training.bert.huggingface import huggingface_config, load_into, read_weights, write_model
from training.bert.modeling import initialize_weights
from training.bert.packing import pack
from training.finetuning.classifier import BertForSequenceClassification
from training.settings.model import ModelConfig

TOLERANCE = 1e-5
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def built(config: ModelConfig, vocab_size: int, seed: int, next_sentence: bool = True) -> BertForPreTraining:
    model = BertForPreTraining(config, vocab_size, next_sentence)
    initialize_weights(model, 0.1, seed)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed + 1)
        for parameter in model.parameters():
            # Biases and LayerNorm scales must take part as well.
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.train(False)
    return model


@pytest.fixture(scope="module")
def exported(make_workspace: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """A random encoder written as a Hugging Face directory, and the model it came from."""
    workspace = make_workspace("interchange")
    vocabulary = os.path.join(workspace.path, "vocabulary")
    config = ModelConfig.model_validate(SMALL)
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
    with pytest.raises(InputError, match=r"weight bert\.embeddings"):
        load_into(BertForPreTraining(ModelConfig(hidden_size=12), 9), {}, "somewhere")


def test_without_next_sentence_it_is_a_masked_language_model(exported: tuple[str, Any], tmp_path: Path) -> None:
    directory, _ = exported
    model = built(ModelConfig.model_validate(SMALL), 206, 4, next_sentence=False)
    assert not any("pooler" in name or "seq_relationship" in name for name in model.state_dict())
    config = huggingface_config(ModelConfig.model_validate(SMALL), 206, model.architecture)
    write_model(str(tmp_path), model.state_dict(), config, directory)
    loaded, report = BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = np.array([2, 10, 11, 4, 13, 3])
    hidden_TH, pooled_BH = model.bert(pack(ids, np.array([6]), np.array([6])))
    assert pooled_BH is None
    torch.testing.assert_close(
        loaded(torch.from_numpy(ids)[None]).logits[0],
        model.cls.predictions.logits(hidden_TH),
        atol=TOLERANCE,
        rtol=TOLERANCE,
    )
    # A classifier is initialized from it with a fresh pooler.
    classifier = BertForSequenceClassification(ModelConfig.model_validate(SMALL), 206, 2)
    kept = load_into(classifier, read_weights(str(tmp_path)), "x", optional=("classifier.", "bert.pooler."))
    assert sorted(kept) == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    ]


def as_bin(tensors: dict[str, torch.Tensor], directory: Path) -> None:
    torch.save(tensors, directory / "pytorch_model.bin")


def as_safetensors(tensors: dict[str, torch.Tensor], directory: Path) -> None:
    safetensors.torch.save_file(tensors, directory / "model.safetensors")


def in_parts(tensors: dict[str, torch.Tensor], directory: Path) -> None:
    names = sorted(tensors)
    parts = {name: f"model-{1 + index % 2:05d}-of-00002.safetensors" for index, name in enumerate(names)}
    for part in set(parts.values()):
        safetensors.torch.save_file({name: tensors[name] for name in names if parts[name] == part}, directory / part)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


@pytest.mark.parametrize("save", [as_bin, as_safetensors, in_parts])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("old_names", [True, False])
def test_every_form_of_a_directory_gives_the_same_weights(
    exported: tuple[str, BertForPreTraining],
    tmp_path: Path,
    save: Callable[[dict[str, torch.Tensor], Path], None],
    prefix: bool,
    old_names: bool,
) -> None:
    _, model = exported
    tensors = {}
    for name, parameter in model.named_parameters():
        if not prefix:
            name = name.removeprefix("bert.")
        if old_names:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[name] = parameter.detach().clone()
    start = "bert." if prefix else ""
    tensors[f"{start}embeddings.position_ids"] = torch.arange(512)[None]
    if old_names:
        # The decoder stored next to the embeddings, and its bias under the decoder's name only.
        tensors["cls.predictions.decoder.weight"] = tensors[f"{start}embeddings.word_embeddings.weight"].clone()
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    save(tensors, tmp_path)
    state = read_weights(str(tmp_path))
    expected = dict(model.named_parameters())
    assert state.keys() == expected.keys()
    for name, parameter in expected.items():
        assert torch.equal(state[name], parameter), name


def test_what_a_configuration_leaves_out_has_the_defaults_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 30_522}))
    config, vocab_size = read_config(str(tmp_path))
    defaults = BertConfig()
    assert vocab_size == defaults.vocab_size
    for name, value in config.identity().items():
        assert value == getattr(defaults, name), name


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-run",)


def test_damaged_and_foreign_weights_are_refused_in_one_line(
    exported: tuple[str, BertForPreTraining], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps({"bert.pooler.dense.bias": Malicious()}, protocol=2))
    with pytest.raises(InputError, match=rf"^{path}: cannot be read as weights only \(.*; save it as model\.safetens"):
        read_weights(str(tmp_path))
    assert not (tmp_path / "was-run").exists()
    torch.save([torch.zeros(2)], path)
    with pytest.raises(InputError, match=rf"^{path}: does not contain named tensors"):
        read_weights(str(tmp_path))
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"neither model\.safetensors nor|cannot be read as weights only"):
        read_weights(str(tmp_path))
    path.unlink()
    with pytest.raises(InputError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        read_weights(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(InputError, match=r"model-1\.safetensors: missing, but the index lists it"):
        read_weights(str(tmp_path))

    directory, model = exported
    state = read_weights(directory)
    del state["bert.pooler.dense.bias"]
    with pytest.raises(InputError, match=rf"^{directory}: weight bert\.pooler\.dense\.bias is missing"):
        load_into(model, state, directory)
    state = read_weights(directory) | {"bert.pooler.dense.bias": torch.zeros(3)}
    with pytest.raises(InputError, match=rf"^{directory}: weight bert\.pooler\.dense\.bias has shape \(3,\), the"):
        load_into(model, state, directory)
    untied = tmp_path / "untied"
    untied.mkdir()
    tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    as_safetensors(tensors | {"cls.predictions.decoder.weight": torch.zeros(206, 16)}, untied)
    with pytest.raises(InputError, match=r"cls\.predictions\.decoder\.weight differs from the word embeddings"):
        read_weights(str(untied))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["bert.embeddings.word_embeddings.weight", "bert.pooler.dense.bias"])
def test_weights_that_are_not_finite_are_refused_by_name(
    exported: tuple[str, BertForPreTraining], value: float, name: str
) -> None:
    directory, model = exported
    state = read_weights(directory)
    state[name] = state[name].clone()
    state[name].view(-1)[3] = value
    size = state[name].numel()
    with pytest.raises(InputError, match=rf"^{directory}: weight {name} has 1 of {size} numbers that are not finite"):
        load_into(model, state, directory)
    # What a model has no use for may be anything.
    load_into(model, read_weights(directory) | {"classifier.weight": torch.tensor([value])}, directory)


def test_real_weights_survive_the_round_trip_and_compute_the_same(real_encoder: Path, tmp_path: Path) -> None:
    config, vocab_size = read_config(str(real_encoder))
    assert (config.num_hidden_layers, config.hidden_size, vocab_size) == (6, 384, 30_522)
    model = BertForPreTraining(config, vocab_size)
    initialize_weights(model, config.initializer_range, 1)
    kept = load_into(model, read_weights(str(real_encoder)), str(real_encoder), optional=("cls.",))
    assert kept
    assert all(name.startswith("cls.") for name in kept)
    model.train(False)
    write_model(
        str(tmp_path),
        model.state_dict(),
        huggingface_config(config, vocab_size, model.architecture),
        str(real_encoder),
    )
    original, ours = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (real_encoder, tmp_path))
    for name, tensor in original.items():
        if not name.endswith("position_ids"):
            assert torch.equal(ours[f"bert.{name}"], tensor), name

    reference = AutoModel.from_pretrained(real_encoder).eval()
    generator = np.random.default_rng(0)
    lengths = np.array([40, 17, 5])
    rows = [generator.integers(1000, vocab_size, length) for length in lengths]
    starts = np.array([20, 17, 2])
    hidden_TH, pooled_BH = model.bert(pack(np.concatenate(rows), lengths, starts))
    first = 0
    for index, row in enumerate(rows):
        types = torch.from_numpy((np.arange(len(row)) >= starts[index]).astype(np.int64))[None]
        wanted = reference(torch.from_numpy(row)[None], token_type_ids=types)
        found_TH = hidden_TH[first : first + len(row)]
        torch.testing.assert_close(found_TH, wanted.last_hidden_state[0], atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(pooled_BH[index], wanted.pooler_output[0], atol=TOLERANCE, rtol=TOLERANCE)
        first += len(row)
