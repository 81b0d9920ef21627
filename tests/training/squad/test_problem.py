"""The span head against transformers, and version 2.0 from files to predictions with a tiny model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, BertConfig
from transformers import BertForQuestionAnswering as ReferenceModel

from training.bert.huggingface import huggingface_config, write_model
from training.bert.modeling import initialize_weights
from training.bert.packing import IntArray, PackedSequences, pack
from training.finetuning.problem import Batches, Forward
from training.finetuning.text import EncodedText
from training.settings.model import ModelConfig
from training.settings.squad import SquadConfig
from training.squad.heads import BertForQuestionAnswering, span_loss_sum
from training.squad.problem import SquadProblem, open_squad
from training.squad.reading import read_squad
from training.squad.scoring import best_threshold, mean_scores

MODEL = ModelConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
VOCAB_SIZE = 206


def packed_rows(text: EncodedText, rows: IntArray) -> PackedSequences:
    tokens = np.concatenate([text.input_ids[row] for row in rows])
    return pack(tokens, text.lengths[rows], text.segment_b_starts[rows])


def test_loss_and_gradients_equal_transformers_on_each_row() -> None:
    generator = np.random.default_rng(3)
    lengths = np.array([23, 23, 17, 9, 2])
    segment_b_starts = np.array([5, 8, 4, 9, 1])
    ids = generator.integers(5, VOCAB_SIZE, int(lengths.sum()))
    starts_B = torch.tensor([0, 22, 5, 8, 1])
    ends_B = torch.tensor([0, 22, 16, 8, 1])
    ours = BertForQuestionAnswering(MODEL, VOCAB_SIZE).eval()
    initialize_weights(ours, 0.2, 7)
    values = {name: value for name, value in MODEL.identity().items() if name != "size"}
    reference = ReferenceModel(BertConfig(vocab_size=VOCAB_SIZE, **values)).eval()
    reference.load_state_dict(ours.state_dict(), strict=True)

    packed = pack(ids, lengths, segment_b_starts)
    loss = span_loss_sum(ours(packed), starts_B, ends_B, packed)
    loss.backward()
    expected = torch.zeros(())
    for row, (first, last) in enumerate(zip(packed.cu_seqlens[:-1], packed.cu_seqlens[1:], strict=True)):
        # One row per batch: the softmax of transformers covers padding, too.
        output = reference(
            input_ids=packed.input_ids_T[first:last].unsqueeze(0),
            token_type_ids=packed.token_type_ids_T[first:last].unsqueeze(0),
            start_positions=starts_B[row : row + 1],
            end_positions=ends_B[row : row + 1],
        )
        expected = expected + output.loss
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    gradients = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-5)


def synthetic_file(path: Path, first_id: int, questions: int, with_impossible: bool) -> str:
    """Texts of filler words (w50 and up) with one name (below w10), which every question asks for; some have none."""
    generator = np.random.default_rng(first_id)
    paragraphs = []
    for number in range(first_id, first_id + questions):
        words = [f"w{index}" for index in generator.integers(50, 200, int(generator.integers(12, 40)))]
        entry: dict[str, Any] = {"id": f"q{number}", "question": "w20 w21", "answers": []}
        if with_impossible and number % 3 == 0:
            entry["is_impossible"] = True
        else:
            place = int(generator.integers(len(words)))
            words[place] = f"w{generator.integers(0, 10)}"
            entry["answers"] = [{"text": words[place], "answer_start": len(" ".join([*words[:place], ""]))}]
        paragraphs.append({"context": " ".join(words), "qas": [entry]})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "synthetic", "paragraphs": paragraphs}]}))
    return str(path)


def trained(problem: SquadProblem, steps: int) -> BertForQuestionAnswering:
    """A model after some steps of plain Adam on the problem's loss."""
    model = problem.build_model(MODEL, VOCAB_SIZE)
    assert isinstance(model, BertForQuestionAnswering)
    initialize_weights(model, 0.2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = np.random.default_rng(0)
    for _ in range(steps):
        rows = generator.permutation(len(problem.train_text.lengths))[:32]
        packed = packed_rows(problem.train_text, rows)
        loss = problem.loss_sum(model(packed), rows, packed) / problem.num_loss_terms(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def forward_of(model: torch.nn.Module) -> Forward:
    def forward(text: EncodedText) -> Batches:
        for rows in np.array_split(np.argsort(-text.lengths, kind="stable"), 5):
            packed = packed_rows(text, rows)
            with torch.no_grad():
                yield rows, packed, model(packed)

    return forward


@pytest.fixture(scope="module")
def vocabulary(make_workspace: Callable[[str], Any]) -> str:
    return os.path.join(make_workspace("squad").path, "vocabulary")


def test_version_2_from_files_to_predictions(tmp_path: Path, vocabulary: str) -> None:
    config = SquadConfig(
        train_file=synthetic_file(tmp_path / "train.json", 0, 400, True),
        dev_file=synthetic_file(tmp_path / "dev.json", 1000, 90, True),
        max_seq_length=32,
        max_query_length=4,
        doc_stride=12,
        n_best_size=5,
        max_answer_length=3,
    )
    problem = open_squad(config, vocabulary)
    dev = read_squad(str(config.dev_file))
    model = trained(problem, 60)
    forward = forward_of(model)
    metrics = problem.evaluate(forward)
    assert metrics["f1"] > 0.9
    assert min(metrics["HasAns_f1"], metrics["NoAns_f1"]) > 0.8

    statistics = problem.finish(forward, str(tmp_path / "first"))
    problem.finish(forward, str(tmp_path / "second"))
    assert statistics.model_extra == metrics
    assert (statistics.version, statistics.dev_questions, statistics.train_questions) == ("2.0", 90, 400)
    assert (statistics.dev_windows or 0) > 90
    written = {}
    for name in ("predictions.json", "nbest_predictions.json", "null_odds.json"):
        content = (tmp_path / "first" / name).read_bytes()
        assert content == (tmp_path / "second" / name).read_bytes()
        written[name] = json.loads(content)
    predictions, n_best, odds = written.values()
    assert list(predictions) == list(n_best) == list(odds) == [question.id for question in dev.questions]
    scores = mean_scores(dev.questions, predictions)
    assert scores == {name: metrics[name] for name in scores}
    texts = {key: next(row["text"] for row in rows if row["text"]) for key, rows in n_best.items()}
    threshold, best_f1 = best_threshold(dev.questions, texts, odds)
    assert (threshold, best_f1) == (metrics["null_threshold"], pytest.approx(metrics["f1"]))
    for key, text in predictions.items():
        assert text == ("" if odds[key] > threshold else texts[key])
        assert len(n_best[key]) <= 6
        assert [row["text"] for row in n_best[key]].count("") == 1
        assert sum(row["probability"] for row in n_best[key]) == pytest.approx(1.0)

    # A threshold from the settings is taken as it is: one answers everything, the other nothing.
    for value, has_answer, no_answer in ((1e9, metrics["HasAns_f1"], 0.0), (-1e9, 0.0, 1.0)):
        fixed = open_squad(config.model_copy(update={"null_threshold": value}), vocabulary).evaluate(forward)
        assert (fixed["null_threshold"], fixed["NoAns_f1"]) == (value, no_answer)
        assert fixed["HasAns_f1"] >= has_answer
    architecture, more = problem.huggingface()
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    write_model(str(tmp_path), state, huggingface_config(MODEL, VOCAB_SIZE, architecture, **more), vocabulary)
    loaded = AutoModelForQuestionAnswering.from_pretrained(str(tmp_path)).eval()
    packed = packed_rows(problem.train_text, np.array([0]))
    with torch.no_grad():
        output = loaded(input_ids=packed.input_ids_T[None], token_type_ids=packed.token_type_ids_T[None])
        logits_T2 = model(packed)
    torch.testing.assert_close(torch.stack([output.start_logits[0], output.end_logits[0]], 1), logits_T2)


def test_version_1_always_answers(tmp_path: Path, vocabulary: str) -> None:
    config = SquadConfig(
        train_file=synthetic_file(tmp_path / "train.json", 0, 20, False),
        dev_file=synthetic_file(tmp_path / "dev.json", 1000, 20, False),
        max_seq_length=32,
        max_query_length=4,
        doc_stride=12,
    )
    problem = open_squad(config, vocabulary)
    model = problem.build_model(MODEL, VOCAB_SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    # An answer of equal merit everywhere is the first token, never the question and never [CLS].
    statistics = problem.finish(forward_of(model), str(tmp_path))
    assert (statistics.model_extra or {}).keys() == {"exact_match", "f1"}
    predictions = json.loads((tmp_path / "predictions.json").read_bytes())
    dev = read_squad(str(config.dev_file))
    assert predictions == {question.id: dev.contexts[question.context].split()[0] for question in dev.questions}
    assert not (tmp_path / "null_odds.json").exists()
