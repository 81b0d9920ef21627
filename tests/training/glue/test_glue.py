"""GLUE's files as they are, its metrics by hand, the word-order task, and fine-tuning on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.manifest import read_manifest
from pipelines.statistics.training import TrialStatistics
from training import finetune
from training.finetuning.text import TextEncoder, truncated_lengths
from training.glue.metrics import majority_baseline, scores
from training.glue.reading import read_examples, read_test
from training.glue.word_order import damage, labelled_rows
from training.settings.glue import TASKS, WordOrderConfig

ROWS = {
    "cola": {"train.tsv": 8551, "dev.tsv": 1043, "test.tsv": 1063},
    "sst-2": {"train.tsv": 67349, "dev.tsv": 872},
    "mrpc": {"train.tsv": 3668, "dev.tsv": 408, "test.tsv": 1725},
    "sts-b": {"train.tsv": 5749, "dev.tsv": 1500, "test.tsv": 1379},
    "rte": {"train.tsv": 2490, "dev.tsv": 277, "test.tsv": 3000},
    "wnli": {"train.tsv": 635, "dev.tsv": 71, "test.tsv": 146},
    "mnli": {"train.tsv": 8999, "dev_matched.tsv": 500, "dev_mismatched.tsv": 500},
    "qqp": {"train.tsv": 8999, "dev.tsv": 1000},
    "qnli": {"train.tsv": 8999, "dev.tsv": 1000, "test.tsv": 5463},
}


@pytest.mark.parametrize("name", ROWS)
def test_real_files_give_their_published_rows(shared_data: Path, name: str) -> None:
    task = TASKS[name]
    for file, count in ROWS[name].items():
        path = str(shared_data / "glue" / task.folder / file)
        examples = read_test(task, path) if file in task.test_files else read_examples(task, path)
        assert len(examples) == count, file
        assert all(examples.sentences_a)
        assert (examples.sentences_b is not None) == (task.sentence_b is not None)
        if examples.labels is not None:
            expected = {0.0, 1.0, 2.0} if name == "mnli" else {0.0, 1.0}
            assert min(examples.labels) >= 0.0
            assert task.is_regression or set(examples.labels) == expected


def test_quotes_and_marks_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_bytes(b'\xef\xbb\xbfindex\tsentence1\tsentence2\tlabel\r\n0\t"open\tnot closed" \tentailment\r\n')
    examples = read_examples(TASKS["rte"], str(path))
    assert examples.sentences_a == ['"open']
    assert examples.sentences_b == ['not closed"']
    assert examples.labels == [0.0]


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("cola", "a\t1\t\tfine\nb\t1\n", r"dev\.tsv:2: has 2 columns; expected 4"),
        ("cola", "a\t2\t\tfine\n", r"dev\.tsv:1: label '2' is none of 0, 1"),
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", r"dev\.tsv:2: label 'maybe' is none of"),
        ("rte", "index\tsentence1\tlabel\n", r"no column 'sentence2'; its header has index, sentence1, label"),
        ("sts-b", "sentence1\tsentence2\tscore\na\tb\thigh\n", r"dev\.tsv:2: label 'high' is not a number"),
        ("rte", "index\tsentence1\tsentence2\tlabel\n", "has no rows"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, task: str, text: str, message: str) -> None:
    path = tmp_path / "dev.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_examples(TASKS[task], str(path))


def test_metrics_by_hand() -> None:
    labels = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    predictions = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    # 3 true positives, 1 false positive, 1 false negative, 1 true negative.
    assert scores(TASKS["mrpc"], labels, predictions) == {"f1": pytest.approx(0.75), "accuracy": pytest.approx(4 / 6)}
    assert scores(TASKS["cola"], labels, predictions)["matthews_correlation"] == pytest.approx((3 * 1 - 1 * 1) / 8)
    ranks = scores(TASKS["sts-b"], np.array([0.0, 1.0, 2.0, 5.0]), np.array([0.0, 2.0, 1.0, 5.0]))
    assert ranks["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert ranks["pearson"] == pytest.approx(13 / 14)
    assert scores(TASKS["sts-b"], labels, np.zeros(6)) == {"spearman": 0.0, "pearson": 0.0}
    assert majority_baseline(TASKS["rte"], labels, predictions) == pytest.approx(4 / 6)
    assert majority_baseline(TASKS["cola"], labels, predictions) == 0.0


def test_damage_keeps_the_words_and_changes_their_order_nearby() -> None:
    config = WordOrderConfig(damaged_words=4, min_words=6)
    for seed in range(50):
        words = [f"w{index * seed % 17}" for index in range(6 + seed % 20)]
        sentence = " ".join(words)
        damaged = damage(sentence, config)
        if len(set(words)) == 1:
            assert damaged is None
            continue
        assert damaged is not None
        assert damaged == damage(sentence, config)
        changed = [index for index, pair in enumerate(zip(words, damaged.split(), strict=True)) if pair[0] != pair[1]]
        assert changed
        assert changed[-1] - changed[0] < 4
        assert sorted(damaged.split()) == sorted(words)


def test_rows_are_balanced() -> None:
    sentences = [f"one two three four five six {index}" for index in range(31)]
    rows = labelled_rows(sentences, 25, WordOrderConfig())
    assert len(rows) == 24
    assert sum(label for label, _ in rows) == 12
    assert all((sentence in sentences) == bool(label) for label, sentence in rows)


def test_text_is_cut_as_the_released_code_cuts_it(make_workspace: Callable[[str], Any]) -> None:
    workspace = make_workspace("text")
    encoder = TextEncoder(os.path.join(workspace.path, "vocabulary"))
    encoded = encoder.encode(["w1 w2 w3 w4 w5 w6"], ["w7 w8 w9"], 10)
    assert encoded.input_ids[0].tolist() == [2, 7, 8, 9, 10, 3, 13, 14, 15, 3]
    assert encoded.segment_b_starts.tolist() == [6]
    single = encoder.encode(["[MASK] w1 [SEP]"], None, 8)
    assert not {3, 4} & set(single.input_ids[0][1:-1].tolist())
    assert truncated_lengths(5, 5, 7) == (4, 3)
    assert truncated_lengths(2, 3, 7) == (2, 3)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_finetuning_from_both_starts_and_skipping(make_workspace: Callable[[str], Any]) -> None:
    workspace = make_workspace("finetuned")
    pretrained = workspace.run("training.pretrain")
    assert pretrained.returncode == 0, pretrained.stderr
    result = workspace.run("training.finetune")
    assert result.returncode == 0, result.stdout + result.stderr
    data = os.path.join(workspace.path, "finetuning", "data", "word-order")
    train, dev = (read_examples(TASKS["word-order"], os.path.join(data, f"{split}.tsv")) for split in ("train", "dev"))
    assert not set(train.sentences_a) & set(dev.sentences_a)
    for start in ("pretrained", "random"):
        directory = os.path.join(workspace.path, "finetuning", "word-order", start)
        manifest = read_manifest(directory)
        assert manifest is not None
        statistics = manifest.statistics_as(TrialStatistics)
        assert statistics.to_json() == manifest.statistics
        assert (statistics.task, statistics.start, statistics.metric) == ("word-order", start, "accuracy")
        assert statistics.majority_baseline == 0.5
        assert (statistics.train_rows, statistics.dev_rows) == (len(train), len(dev))
        model = AutoModelForSequenceClassification.from_pretrained(os.path.join(directory, "model"))
        tokenizer = AutoTokenizer.from_pretrained(os.path.join(directory, "model"))
        encoded = tokenizer(dev.sentences_a, padding=True, return_tensors="pt")
        answers = model(**encoded).logits.argmax(1).numpy()
        # The written model gives the score on record, on padded batches and by transformers alone.
        assert float((answers == np.array(dev.labels)).mean()) == pytest.approx(statistics.score)

    again = workspace.run("training.finetune")
    assert again.stdout == "finetuning: all trials are complete and up to date\n"
    changed = read_manifest(os.path.join(workspace.path, "finetuning", "word-order", "random"))
    assert changed is not None
    assert "pretraining" not in changed.inputs


def test_mistakes_give_one_line(make_workspace: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    workspace = make_workspace("glue_mistakes")

    def line(*arguments: str) -> str:
        command = [workspace.recipe, "--workspace", workspace.path, *arguments]
        assert exit_code_of(lambda: finetune.main(command)) == 2
        return capsys.readouterr().err

    assert "valid names: cola, sst-2" in line("--tasks", "colla")
    assert "glue_dir is not set" in line("--tasks", "cola")
    assert "run clozeworks pretrain" in line()
    missing = line("--tasks", "cola", "--set", f"finetuning.glue_dir={workspace.path}", "--encoder", workspace.path)
    assert "CoLA/train.tsv: missing" in missing
