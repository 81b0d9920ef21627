"""Tagging in the fine-tuning loop: loss and gradients as transformers', scores as seqeval's, files that come back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from tests.support.training.tagged_corpus import MODEL, VOCABULARY, packed_rows, tagging_settings, write_corpus
from transformers import AutoModelForTokenClassification, BertConfig
from transformers import BertForTokenClassification as ReferenceBert

from pipelines.contract.errors import InputError
from pipelines.statistics.training import FamilyStatistics
from training.bert.huggingface import huggingface_config, write_model
from training.bert.modeling import initialize_weights
from training.engine.processes import Processes
from training.finetuning.loop import Beginning, Fitting
from training.settings.optimization import OptimizerConfig
from training.settings.tagging import TaggingConfig
from training.tagging.problem import TaggingProblem, open_tagging
from training.tagging.reading import read_conll
from training.tagging.schemes import spans_of
from training.tagging.scores import scores_by_type, span_scores
from training.tracking.tracker import Tracker


@pytest.fixture
def settings(tmp_path: Path) -> TaggingConfig:
    test_file = write_corpus(tmp_path / "test.txt", 30, 3, "iob2")
    return tagging_settings(tmp_path, 120, 30, test_file=test_file, learning_rate=5e-3, num_train_epochs=6)


def test_loss_and_gradients_equal_transformers(settings: TaggingConfig, tmp_path: Path) -> None:
    config = settings.model_copy(update={"document_context": True, "max_seq_length": 12})
    problem = open_tagging(config, str(tmp_path))
    model = problem.build_model(MODEL, len(VOCABULARY))
    initialize_weights(model, 0.2, 1)
    model.eval()
    architecture, more = problem.huggingface()
    reference = ReferenceBert(BertConfig(**huggingface_config(MODEL, len(VOCABULARY), architecture, **more)))
    reference.eval()
    reference.load_state_dict(model.state_dict())

    rows = np.array([5, 0, 9, 16])
    packed = packed_rows(problem, rows)
    loss = problem.loss_sum(model(packed), rows, packed) / problem.num_loss_terms(rows)
    loss.backward()

    sentences = read_conll(str(config.train_file), 0, -1, "auto").sentences
    longest = int(problem.train_text.lengths[rows].max())
    input_ids, labels = torch.zeros(len(rows), longest, dtype=torch.int64), torch.full((len(rows), longest), -100)
    attention_mask = torch.zeros_like(input_ids)
    for place, row in enumerate(rows):
        ids = problem.train_text.input_ids[row].tolist()
        input_ids[place, : len(ids)] = torch.tensor(ids)
        attention_mask[place, : len(ids)] = 1
        words = [VOCABULARY.index(word.lower()) for word in sentences[row].words]
        (start,) = (at for at in range(len(ids)) if ids[at : at + len(words)] == words)
        own = [problem.labels.index(label) for label in sentences[row].labels]
        labels[place, start : start + len(own)] = torch.tensor(own)
    expected = reference(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=0.0, rtol=1e-5)
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_fitting_finds_the_spans_and_context_tells_what_a_sentence_alone_does_not(
    settings: TaggingConfig, tmp_path: Path, single_process: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {}
    for with_context in (False, True):
        directory = tmp_path / str(with_context)
        config = settings.model_copy(update={"document_context": with_context})
        problem = open_tagging(config, str(tmp_path))
        beginning = Beginning(MODEL, len(VOCABULARY), None)
        fitting = Fitting(problem, beginning, config, OptimizerConfig(), single_process, print)
        with Tracker(str(directory), is_first=True) as tracker:
            fitted = fitting.run(tracker, str(directory / "predictions"))
        scores[with_context] = fitted.metrics["f1"]
        assert set(fitted.metrics) == {"precision", "recall", "f1", "accuracy"}
        stated = fitted.more.to_json()
        assert json.dumps(FamilyStatistics.model_validate(stated).to_json()) == json.dumps(stated)
        assert not fitted.more.model_extra
        assert fitted.more.schemes == {"train": "iob1", "dev": "bioes", "test": "iob2"}
        for name, file in (("dev", settings.dev_file), ("test", settings.test_file)):
            gold, predicted = columns(directory / "predictions" / f"{name}.conll")
            assert gold == [list(sentence.labels) for sentence in read_conll(str(file), 0, -1, "auto").sentences]
            found = fitted.metrics if name == "dev" else stated["test"]
            assert found["f1"] == pytest.approx(f1_score(gold, predicted))
            by_type = stated[f"{name}_by_type"]
            assert set(by_type) == {"PER", "LOC"}
            counted = sum(len(spans_of(labels)) for labels in gold)
            assert sum(row["spans"] for row in by_type.values()) == counted
        require_same_by_transformers(problem, fitted.state, directory, tmp_path)
    assert scores[False] < 0.9
    assert scores[True] > 0.98
    said = capsys.readouterr().out
    assert "train.txt: 240 sentences, 1,440 words, labels in iob1\n" in said


def columns(path: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Gold and predicted labels of a file of predictions, which our own reader reads."""
    gold, predicted = (read_conll(str(path), 0, column, "iob2") for column in (1, 2))
    assert gold.has_documents
    assert [each.words for each in gold.sentences] == [each.words for each in predicted.sentences]
    # Predictions may be irregular, so they are taken as they stand.
    blocks = [block.splitlines() for block in path.read_text().strip().split("\n\n")]
    rows = [[line.split(" ") for line in block] for block in blocks if not block[0].startswith("-DOCSTART-")]
    return [[row[1] for row in block] for block in rows], [[row[2] for row in block] for block in rows]


def require_same_by_transformers(
    problem: TaggingProblem, state: dict[str, torch.Tensor], directory: Path, vocabulary: Path
) -> None:
    """The written model, loaded by transformers alone, labels a training row as ours does."""
    architecture, more = problem.huggingface()
    config = huggingface_config(MODEL, len(VOCABULARY), architecture, **more)
    write_model(str(directory / "model"), state, config, str(vocabulary))
    model = AutoModelForTokenClassification.from_pretrained(str(directory / "model"))
    assert [model.config.id2label[index] for index in range(len(problem.labels))] == list(problem.labels)
    ours = problem.build_model(MODEL, len(VOCABULARY))
    ours.load_state_dict(state)
    ours.eval()
    packed = packed_rows(problem, np.array([3]))
    with torch.no_grad():
        expected = model(input_ids=packed.input_ids_T.unsqueeze(0)).logits[0]
        torch.testing.assert_close(ours(packed), expected, atol=1e-5, rtol=1e-4)


def test_the_same_settings_give_the_same_bytes(
    settings: TaggingConfig, tmp_path: Path, single_process: Processes
) -> None:
    config = settings.model_copy(update={"num_train_epochs": 1})
    states = []
    for name in ("first", "second"):
        problem = open_tagging(config, str(tmp_path))
        beginning = Beginning(MODEL, len(VOCABULARY), None)
        fitting = Fitting(problem, beginning, config, OptimizerConfig(), single_process, print)
        with Tracker(str(tmp_path / name), is_first=True) as tracker:
            states.append(fitting.run(tracker, str(tmp_path / name / "predictions")).state)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    first, second = ((tmp_path / name / "predictions" / "dev.conll").read_bytes() for name in ("first", "second"))
    assert first == second


labels_of_one = st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), min_size=1, max_size=8)


@examples(deadline=None, derandomize=True)
@given(st.lists(st.tuples(labels_of_one, st.randoms()), min_size=1, max_size=4))
def test_scores_count_spans(sentences: list[tuple[list[str], object]]) -> None:
    gold = [labels for labels, _ in sentences]
    predicted = [list(np.roll(labels, 1)) for labels in gold]
    theirs = [
        {(at, *span) for at, labels in enumerate(each) for span in spans_of(labels)} for each in (gold, predicted)
    ]
    right = len(theirs[0] & theirs[1])
    scores = span_scores(gold, predicted)
    precision, recall = right / max(len(theirs[1]), 1), right / max(len(theirs[0]), 1)
    assert scores["precision"] == pytest.approx(precision)
    assert scores["recall"] == pytest.approx(recall)
    assert scores["f1"] == pytest.approx(2 * precision * recall / max(precision + recall, 1e-9))
    by_type = scores_by_type(gold, predicted)
    assert list(by_type) == sorted({span[1] for spans in theirs for span in spans})
    for name, row in by_type.items():
        own = [{span for span in spans if span[1] == name} for spans in theirs]
        assert row["spans"] == len(own[0])
        assert row["recall"] == pytest.approx(len(own[0] & own[1]) / max(len(own[0]), 1))
        assert row["precision"] == pytest.approx(len(own[0] & own[1]) / max(len(own[1]), 1))


def test_no_spans_at_all_score_nothing_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert span_scores([["O", "O"]], [["O", "O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 1.0}
    assert scores_by_type([["O"]], [["O"]]) == {}
    assert not recwarn.list


def test_odd_files(settings: TaggingConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("Paris B-CITY\n")
    with pytest.raises(InputError, match=r"plain\.txt: has no -DOCSTART- rows"):
        open_tagging(settings.model_copy(update={"dev_file": str(plain), "document_context": True}), str(tmp_path))
    open_tagging(settings.model_copy(update={"dev_file": str(plain)}), str(tmp_path))
    assert "plain.txt: has CITY, which the training file lacks" in capsys.readouterr().out
    plain.write_text("Paris O\n")
    with pytest.raises(InputError, match=r"plain\.txt: has no spans"):
        open_tagging(settings.model_copy(update={"train_file": str(plain)}), str(tmp_path))
