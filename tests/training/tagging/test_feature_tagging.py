"""Tagging by features: hidden states as transformers', an LSTM for each row alone, no training of the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.training.tagged_corpus import MODEL, VOCABULARY, packed_rows, tagging_settings
from transformers import BertConfig
from transformers import BertModel as ReferenceBert

from pipelines.contract.errors import InputError
from training.bert.huggingface import huggingface_config, write_model
from training.bert.model_readme import own_reason
from training.bert.modeling import initialize_weights
from training.engine.processes import Processes
from training.finetuning.loop import Beginning, Fitting
from training.settings.optimization import OptimizerConfig
from training.settings.tagging import TaggingConfig
from training.tagging.features import FeaturesForTokenClassification
from training.tagging.problem import TaggingProblem, open_tagging
from training.tracking.tracker import Tracker

CONFIG = MODEL.model_copy(
    update={"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "initializer_range": 0.2}
)


@pytest.fixture
def settings(tmp_path: Path) -> TaggingConfig:
    return tagging_settings(tmp_path, 60, 20, learning_rate=1e-2, num_train_epochs=8)


def built(problem: TaggingProblem) -> FeaturesForTokenClassification:
    model = problem.build_model(CONFIG, len(VOCABULARY))
    assert isinstance(model, FeaturesForTokenClassification)
    initialize_weights(model, 0.2, 1)
    return model


@pytest.mark.parametrize(
    ("layers", "mix", "expected"),
    [
        ((0,), "concatenated", (0,)),
        ((-1,), "concatenated", (2,)),
        ((-1, 0, 1), "concatenated", (2, 0, 1)),
        ((0, 1, 2), "weighted_sum", (0, 1, 2)),
    ],
)
def test_each_row_is_read_alone_from_the_states_of_transformers(
    layers: tuple[int, ...], mix: str, expected: Sequence[int], settings: TaggingConfig, tmp_path: Path
) -> None:
    config = settings.model_copy(update={"feature_layers": layers, "feature_mix": mix})
    problem = open_tagging(config, str(tmp_path))
    model = built(problem).train()
    if model.mixture is not None:
        with torch.no_grad():
            model.mixture.copy_(torch.tensor([0.5, -1.0, 2.0]))
    reference = ReferenceBert(BertConfig(**huggingface_config(CONFIG, len(VOCABULARY), "BertModel"))).eval()
    found = reference.load_state_dict(model.bert.state_dict(), strict=False)
    assert all(name.startswith("pooler.") for name in found.missing_keys)
    rows = np.array([5, 0, 9, 16])
    logits_TC = model(packed_rows(problem, rows))
    logits = torch.split(logits_TC, problem.train_text.lengths[rows].tolist())
    for row, own_SC in zip(rows, logits, strict=True):
        ids = torch.from_numpy(problem.train_text.input_ids[row].astype(np.int64))[None]
        with torch.no_grad():
            states = reference(ids, output_hidden_states=True).hidden_states
        if mix == "concatenated":
            features_1SF = torch.cat([states[layer] for layer in expected], 2)
        else:
            weights = np.exp([0.5, -1.0, 2.0]) / np.exp([0.5, -1.0, 2.0]).sum()
            features_1SF = sum(float(w) * states[layer] for w, layer in zip(weights, expected, strict=True))
        output_S1H, _ = model.bilstm(features_1SF.transpose(0, 1))
        torch.testing.assert_close(own_SC, model.classifier(output_S1H[:, 0]), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "mix"), [("fp32", "weighted_sum"), ("bf16", "concatenated")])
def test_fitting_trains_all_but_the_encoder(
    precision: str, mix: str, settings: TaggingConfig, tmp_path: Path, single_process: Processes
) -> None:
    config = settings.model_copy(update={"feature_layers": (-1, -2), "feature_mix": mix})
    problem = open_tagging(config, str(tmp_path))
    before = {name: tensor.detach().clone() for name, tensor in built(problem).state_dict().items()}
    encoder = str(tmp_path / "encoder")
    own = {name: tensor for name, tensor in before.items() if name.startswith("bert.")}
    write_model(encoder, own, huggingface_config(CONFIG, len(VOCABULARY), "BertModel"), str(tmp_path))
    optimizer = OptimizerConfig.model_validate({"precision": precision})
    fitting = Fitting(problem, Beginning(CONFIG, len(VOCABULARY), encoder), config, optimizer, single_process, print)
    with Tracker(str(tmp_path / "log"), is_first=True) as tracker:
        fitted = fitting.run(tracker, str(tmp_path))
    assert fitted.metrics["f1"] > 0.5
    assert fitted.state.keys() == dict(built(problem).named_parameters()).keys()
    for name, tensor in fitted.state.items():
        assert tensor.dtype == torch.float32
        if name.startswith("bert."):
            stored = own[name] if precision == "fp32" else own[name].bfloat16().float()
            assert torch.equal(tensor, stored), name
        else:
            assert tensor.any(), name


def test_only_this_project_loads_such_a_model_and_it_names_its_layers(settings: TaggingConfig, tmp_path: Path) -> None:
    problem = open_tagging(settings.model_copy(update={"feature_layers": (0, -1)}), str(tmp_path))
    architecture, more = problem.huggingface()
    assert own_reason(architecture) is not None
    assert (more["feature_layers"], more["feature_mix"]) == ([0, -1], "concatenated")


@pytest.mark.parametrize(
    ("settings_of_tagging", "problem"),
    [
        ({"feature_layers": (1, 1)}, r"feature_layers = \[1, 1\] names a layer twice; remove one"),
        ({"feature_mix": "weighted_sum"}, "feature_mix = 'weighted_sum' mixes feature_layers, which is empty; set it"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings_of_tagging: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TaggingConfig.model_validate(settings_of_tagging)


@pytest.mark.parametrize(
    ("layers", "more", "problem"),
    [
        ((3,), {}, "finetuning.tagging.feature_layers names 3; this encoder has 0 .embeddings. to 2, or -3 to -1"),
        ((2, -1), {}, "finetuning.tagging.feature_layers 2,-1 names a layer twice"),
        ((-1,), {"attention": "two_directions"}, "needs one encoder, and this model has two"),
    ],
)
def test_an_encoder_without_the_layers_is_refused(
    layers: tuple[int, ...], more: dict[str, str], problem: str, settings: TaggingConfig, tmp_path: Path
) -> None:
    opened = open_tagging(settings.model_copy(update={"feature_layers": layers}), str(tmp_path))
    with pytest.raises(InputError, match=problem):
        opened.build_model(CONFIG.model_copy(update=more), len(VOCABULARY))
