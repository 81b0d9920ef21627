"""Losses and gradients of tables against transformers and torch, weights of labels, and several ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from tests.support.training.finetune_ranks import finetune_on_ranks
from tests.support.training.tiny_models import WORDS, write_tiny_encoder
from torch import nn
from transformers import BertConfig
from transformers import BertForSequenceClassification as ReferenceBert

from pipelines.contract.manifest import read_manifest
from pipelines.contract.workspace import METRICS_NAME
from training.bert.huggingface import huggingface_config
from training.bert.modeling import initialize_weights
from training.bert.packing import pack
from training.finetuning.text import TextEncoder
from training.settings.model import ModelConfig
from training.settings.tables import Kind, TableConfig
from training.tables.labels import label_weights
from training.tables.problem import TableProblem
from training.tables.reading import read_splits

MODEL = ModelConfig(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32
)
LABELS: dict[Kind, list[Any]] = {
    "single": ["b", "a", "c", "b", "b", "a"],
    "multi": [["a"], [], ["c", "b"], ["b"], ["a", "b", "c"], ["b"]],
    "regression": [0.5, 1, 2.25, -3, 4, 0],
}
WEIGHTS = ({"label": "a", "weight": 3.0}, {"label": "c", "weight": 0.5})
TEXTS = ["it returns the list", "a list", "the number of items in the list.", "first", "items, items", "returns a"]


def write_rows(path: Path, kind: Kind, copies: int = 1) -> Path:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS[kind], strict=True)] * copies
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def problem_of(folder: Path, kind: Kind, **settings: Any) -> TableProblem:
    path = str(write_rows(folder / "rows.jsonl", kind))
    table = TableConfig(name="own", train_file=path, dev_file=path, kind=kind, **settings)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return TableProblem(table, read_splits(table), TextEncoder(str(folder)), 32)


def built(problem: TableProblem) -> nn.Module:
    model = problem.build_model(MODEL, len(WORDS))
    initialize_weights(model, 0.2, 1)
    return model.eval()


def loss_of(problem: TableProblem, model: nn.Module, rows: list[int], num_terms: float) -> torch.Tensor:
    numbers = np.array(rows)
    text = problem.train_text
    tokens = np.concatenate([text.input_ids[row] for row in rows])
    packed = pack(tokens, text.lengths[numbers], text.segment_b_starts[numbers])
    return problem.loss_sum(model(packed), numbers, packed) / num_terms


def padded(problem: TableProblem) -> dict[str, torch.Tensor]:
    text = problem.train_text
    ids = np.zeros((len(text.lengths), text.lengths.max()), dtype=np.int64)
    for row, tokens in enumerate(text.input_ids):
        ids[row, : len(tokens)] = tokens
    mask = np.arange(ids.shape[1]) < text.lengths[:, None]
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def reference_of(problem: TableProblem, model: nn.Module) -> ReferenceBert:
    """The class of transformers, from our config.json alone: `problem_type` chooses its loss."""
    architecture, more = problem.huggingface()
    config = BertConfig(**huggingface_config(MODEL, len(WORDS), architecture, **more))
    assert config.num_labels == len(problem.names)
    reference = ReferenceBert(config).eval()
    reference.load_state_dict(model.state_dict(), strict=True)
    return reference


TARGETS = {
    "single": torch.tensor([1, 0, 2, 1, 1, 0]),
    "multi": torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 1, 1], [0, 1, 0], [1, 1, 1], [0, 1, 0]]),
    "regression": torch.tensor([0.5, 1, 2.25, -3, 4, 0]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_losses_and_gradients_equal_transformers(tmp_path: Path, kind: Kind) -> None:
    problem = problem_of(tmp_path, kind)
    model = built(problem)
    reference = reference_of(problem, model)
    rows = list(range(len(TEXTS)))
    loss = loss_of(problem, model, rows, problem.num_loss_terms(np.array(rows)))
    expected = reference(**padded(problem), labels=TARGETS[kind]).loss
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    loss.backward()
    expected.backward()
    ours = dict(model.named_parameters())
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("balanced", [True, False])
def test_weights_are_those_of_torch_over_any_parts_of_a_batch(tmp_path: Path, kind: Kind, balanced: bool) -> None:
    weights: dict[str, Any] = {"balance_labels": True} if balanced else {"class_weights": WEIGHTS}
    problem = problem_of(tmp_path, kind, **weights)
    expected_weights = torch.tensor([3.0, 1.0, 0.5])
    if balanced and kind == "single":
        labels = np.array(LABELS["single"])
        expected_weights = torch.from_numpy(compute_class_weight("balanced", classes=np.unique(labels), y=labels))
    elif balanced:
        expected_weights = (6 - TARGETS["multi"].sum(0)) / TARGETS["multi"].sum(0)
    criterion: nn.Module = (
        nn.CrossEntropyLoss(weight=expected_weights.float())
        if kind == "single"
        else nn.BCEWithLogitsLoss(pos_weight=expected_weights.float())
    )
    model = built(problem)
    reference = reference_of(problem, model)
    expected = criterion(reference(**padded(problem)).logits, TARGETS[kind])
    expected.backward()
    num_terms = problem.num_loss_terms(np.arange(len(TEXTS)))
    parts = [loss_of(problem, model, rows, num_terms) for rows in ([4, 0], [2], [5, 1, 3])]
    torch.testing.assert_close(sum(parts), expected, atol=1e-6, rtol=1e-5)
    sum(parts).backward()  # type: ignore[union-attr]  # there is more than one
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, parameter.grad, atol=1e-6, rtol=1e-4)


def test_a_label_of_all_or_no_training_rows_has_weight_one() -> None:
    table = TableConfig(name="t", train_file="t.csv", dev_share=0.1, kind="multi", balance_labels=True)
    weights = label_weights(table, ("a", "b", "c"), np.array([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(weights, [1.0, 1.0, 2.0])
    single = table.model_copy(update={"kind": "single"})
    np.testing.assert_array_equal(label_weights(single, ("a", "b", "c"), np.array([0.0, 0.0, 2.0])), [0.75, 1.0, 1.5])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_learn_what_one_learns(tmp_path: Path) -> None:
    """With weights, and a last batch that leaves the second rank nothing."""
    write_tiny_encoder(str(tmp_path / "encoder"))
    write_rows(tmp_path / "train.jsonl", "single", copies=3)
    losses = []
    for ranks in (1, 2):
        workspace = tmp_path / f"on-{ranks}"
        recipe = tmp_path / f"{ranks}.toml"
        recipe.write_text(f"""
run = {{ workspace = "{workspace}" }}
[finetuning]
encoder = "{tmp_path}/encoder"
batch_size = 17
learning_rate = 1e-3
num_train_epochs = 2
max_seq_length = 16
log_every_steps = 1
dropout = 0.0
precision = "fp32"
[[finetuning.tables]]
name = "own"
train_file = "{tmp_path}/train.jsonl"
dev_file = "{tmp_path}/train.jsonl"
class_weights = [{{ label = "a", weight = 5.0 }}, {{ label = "c", weight = 0.25 }}]
""")
        finetune_on_ranks(recipe, ranks)
        trial = workspace / "finetuning" / "own" / "pretrained"
        lines = [json.loads(line) for line in (trial / METRICS_NAME).read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
        assert read_manifest(str(trial)) is not None
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[1], losses[0], atol=2e-5, rtol=0)
