"""The linear probe: its features and its choices by hand, and the command on small files in GLUE's forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from training import probe as command
from training.bert.huggingface import huggingface_config, write_model
from training.bert.modeling import BertModel, initialize_weights
from training.data.ordering import keyed_permutation
from training.features.probing import PENALTIES, SentenceFeatures, probe, sampled, sentence_features
from training.glue.reading import LabelledText
from training.settings.glue import TASKS
from training.settings.model import ModelConfig


def features(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def single(values: np.ndarray) -> SentenceFeatures:
    return SentenceFeatures(values, np.arange(len(values)), None)


def test_each_sentence_is_encoded_once_and_pairs_are_combined() -> None:
    asked: list[str] = []

    def encode(sentences: list[str]) -> np.ndarray:
        asked.extend(sentences)
        return np.array([[len(sentence), 1.0] for sentence in sentences], dtype=np.float32)

    made = sentence_features(LabelledText(["a", "bb", "a"], ["bb", "a", "cccc"], [0.0, 1.0, 0.0]), encode)
    assert asked == ["a", "bb", "cccc"]
    np.testing.assert_array_equal(made.rows(np.array([2, 0])), [[1, 1, 4, 1, 3, 0, 4, 1], [1, 1, 2, 1, 1, 0, 2, 1]])
    alone = sentence_features(LabelledText(["a", "bb"], None, [0.0, 1.0]), encode)
    np.testing.assert_array_equal(alone.rows(np.array([1])), [[2, 1]])


def test_a_sample_keeps_rows_together_and_in_order() -> None:
    text = LabelledText(
        [f"a{row}" for row in range(50)], [f"b{row}" for row in range(50)], [float(r) for r in range(50)]
    )
    some = sampled(text, 20, 1, "x")
    assert some.labels == sorted(some.labels or [])
    assert [(f"a{int(row)}", f"b{int(row)}") for row in some.labels or []] == list(
        zip(some.sentences_a, some.sentences_b or [], strict=True)
    )
    assert sampled(text, 20, 1, "x") == some != sampled(text, 20, 2, "x")
    assert sampled(text, 50, 1, "x") is text


@pytest.mark.parametrize("name", ["mrpc", "sts-b"])
def test_penalty_and_scores_equal_a_plain_reference(name: str) -> None:
    task = TASKS[name]
    train, dev = features(300, 40, 1) * 3 + 1, features(5_000, 40, 2) * 3 + 1
    signal = [values[:, 0] + 4 * features(len(values), 1, seed)[:, 0] for values, seed in ((train, 3), (dev, 4))]
    labels = [values if task.is_regression else (values > 1).astype(np.float64) for values in signal]
    found = probe(task, single(train), labels[0], single(dev), labels[1], 7)

    def answers(rows: np.ndarray, row_labels: np.ndarray, penalty: float, asked: np.ndarray) -> np.ndarray:
        mean, deviation = rows.mean(0), rows.std(0)
        kind = Ridge(alpha=penalty) if task.is_regression else LogisticRegression(C=1 / penalty, max_iter=1_000)
        return kind.fit((rows - mean) / deviation, row_labels).predict((asked - mean) / deviation)

    def metric(expected: np.ndarray, predicted: np.ndarray) -> float:
        if not task.is_regression:
            return float(f1_score(expected, predicted))
        ranks = [values.argsort().argsort() for values in (expected, predicted)]
        return float(np.corrcoef(*ranks)[0, 1])

    order = keyed_permutation(300, 7, name, "probe held out")
    heldout, kept = order[:60], order[60:]
    values = [
        metric(labels[0][heldout], answers(train[kept], labels[0][kept], penalty, train[heldout]))
        for penalty in PENALTIES
    ]
    assert found.penalty == PENALTIES[int(np.argmax(values))]
    assert found.heldout == pytest.approx(max(values), abs=1e-4)
    expected = metric(labels[1], answers(train, labels[0], found.penalty, dev))
    assert found.metrics[task.metric] == pytest.approx(expected, abs=1e-3)
    assert found.converged
    assert len(set(np.round(values, 6))) > 1


def test_noise_scores_as_noise() -> None:
    labels = np.arange(2_000) % 2.0
    result = probe(TASKS["rte"], single(features(2_000, 30, 1)), labels, single(features(2_000, 30, 2)), labels, 1)
    assert abs(result.metrics["accuracy"] - 0.5) < 0.06


def test_at_a_tie_the_strongest_penalty_is_kept() -> None:
    labels = np.arange(100) % 2.0
    nothing = single(np.zeros((100, 3), np.float32))
    assert probe(TASKS["rte"], nothing, labels, nothing, labels, 1).penalty == max(PENALTIES)


@pytest.fixture(scope="module")
def encoder_path(make_workspace: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    vocabulary = f"{make_workspace('probe').path}/vocabulary"
    config = ModelConfig.model_validate(
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 32,
        }
    )
    size = len(Path(vocabulary, "vocab.txt").read_text().splitlines())
    model = BertModel(config, size)
    initialize_weights(model, 1.0, 1)
    directory = str(tmp_path_factory.mktemp("encoder"))
    state = {f"bert.{name}": tensor for name, tensor in model.state_dict().items()}
    write_model(directory, state, huggingface_config(config, size, "BertModel"), vocabulary)
    return directory


@pytest.fixture(scope="module")
def glue_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """CoLA and STS-B by rules that a bag of words follows: is w1 in it, and how many words are shared."""
    folder = str(tmp_path_factory.mktemp("glue"))
    generator = np.random.default_rng(1)
    for split, rows in (("train", 300), ("dev", 100)):
        words = generator.integers(2, 12, size=(rows, 6))
        words[::2, 0] = 1
        cola = [f"x\t{int(1 in row)}\t\t{' '.join(f'w{word}' for word in row)}\n" for row in words]
        storage.write_bytes(f"{folder}/CoLA/{split}.tsv", "".join(cola).encode())
        pairs = ["sentence1\tsentence2\tscore\n"]
        for row in words:
            shared = int(generator.integers(0, 6))
            other = [*row[:shared], *generator.integers(50, 60, size=6 - shared)]
            sides = [" ".join(f"w{word}" for word in side) for side in (row, other)]
            pairs.append(f"{sides[0]}\t{sides[1]}\t{shared / 1.2:.3f}\n")
        storage.write_bytes(f"{folder}/STS-B/{split}.tsv", "".join(pairs).encode())
    return folder


def test_the_command_finds_what_is_there(
    encoder_path: str, glue_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "probe.json"
    arguments = ["--model", encoder_path, "--glue-dir", glue_dir, "--tasks", "cola", "sts-b", "--output", str(output)]
    assert command.main([*arguments, "--layers", "0,-1", "--max-train-rows", "250"]) == 0
    report = json.loads(output.read_text())
    assert (report["layers"], report["max_seq_length"], report["model"]) == ([0, 1], 32, encoder_path)
    cola, sts = report["tasks"]["cola"], report["tasks"]["sts-b"]
    assert (cola["train_rows"], cola["dev_rows"], cola["majority"], sts["majority"]) == (250, 100, 0.0, 0.0)
    for kind in ("random", "encoder"):
        assert cola[kind]["matthews_correlation"] > 0.9
        assert sts[kind]["spearman"] > 0.6
    assert cola["random"] != cola["encoder"]
    table = capsys.readouterr().out.splitlines()[-3:]
    assert table[0].split() == ["task", "metric", "train", "dev", "majority", "random", "encoder", "seconds"]
    shown = [f"{cola[kind]['matthews_correlation']:.4f}" for kind in ("random", "encoder")]
    assert table[1].split()[:-1] == ["cola", "matthews_correlation", "250", "100", "0.0000", *shown]

    assert command.main([*arguments, "--layers", "0,-1", "--max-train-rows", "250"]) == 0
    again = json.loads(output.read_text())["tasks"]["cola"]["encoder"]
    assert {key: value for key, value in again.items() if "seconds" not in key} == {
        key: value for key, value in cola["encoder"].items() if "seconds" not in key
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "ax"], "--tasks names 'ax'; valid names: cola"),
        (["--tasks", "rte"], "RTE/train.tsv: missing"),
        (["--tasks", "cola", "--max-train-rows", "5"], "--max-train-rows 5: too few"),
        (["--tasks", "cola", "--layers", "2"], "--layers names 2"),
        (["--tasks", "cola", "--model", "absent"], "absent: no such directory"),
    ],
)
def test_mistakes_are_one_line(encoder_path: str, glue_dir: str, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=r"\S") as caught:
        command.main(["--model", encoder_path, "--glue-dir", glue_dir, *arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
