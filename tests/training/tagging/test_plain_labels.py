"""Plain labels, such as parts of speech, and spans without a type, from files to scores and predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from pipelines.contract.errors import InputError
from pipelines.statistics.training import TrialStatistics
from training.engine.processes import Processes
from training.finetuning.loop import Beginning, Fitted, Fitting
from training.settings.model import ModelConfig
from training.settings.optimization import OptimizerConfig
from training.settings.tagging import TaggingConfig
from training.tagging.problem import TaggingProblem, open_tagging
from training.tagging.scores import scores_by_token_label, token_scores
from training.tracking.tracker import Tracker

PARTS = {
    "DET": ("the", "a", "some"),
    "NOUN": ("dog", "cat", "man", "park"),
    "VERB": ("sees", "walks", "likes"),
    "ADP": ("in", "with"),
    "PUNCT": (".", ","),
}
ORDER = ("DET", "NOUN", "VERB", "DET", "NOUN", "ADP", "DET", "NOUN", "PUNCT")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(word for words in PARTS.values() for word in words)]
MODEL = ModelConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32
)


def write_corpus(path: Path, count: int, seed: int, labels: dict[str, str] | None = None) -> str:
    generator = np.random.default_rng(seed)
    sentences = []
    for _ in range(count):
        parts = ORDER[: generator.integers(2, len(ORDER) + 1)]
        rows = [
            (str(generator.choice(PARTS[part])), (labels or {}).get(part, part if labels is None else "O"))
            for part in parts
        ]
        sentences.append("".join(f"{word}\t{label}\n" for word, label in rows))
    path.write_text("\n".join(sentences))
    return str(path)


def fitted(
    folder: Path, processes: Processes, labels: dict[str, str] | None, **settings: Any
) -> tuple[TaggingProblem, Fitted]:
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    config = TaggingConfig(
        train_file=write_corpus(folder / "train.txt", 80, 1, labels),
        dev_file=write_corpus(folder / "dev.txt", 20, 2, labels),
        test_file=write_corpus(folder / "test.txt", 20, 3, labels),
        max_seq_length=16,
        batch_size=16,
        learning_rate=5e-3,
        num_train_epochs=3,
        **settings,
    )
    problem = open_tagging(config, str(folder))
    fitting = Fitting(
        problem, Beginning(MODEL, len(VOCABULARY), None), config, OptimizerConfig(), processes, lambda _line: None
    )
    with Tracker(str(folder), is_first=True) as tracker:
        return problem, fitting.run(tracker, str(folder / "predictions"))


def columns(path: Path) -> tuple[list[str], list[str]]:
    rows = [line.split("\t") for line in path.read_text().splitlines() if line]
    return [row[1] for row in rows], [row[2] for row in rows]


def test_parts_of_speech(tmp_path: Path, single_process: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    problem, result = fitted(tmp_path, single_process, None)
    assert problem.labels == ("ADP", "DET", "NOUN", "PUNCT", "VERB")
    assert problem.metric == "accuracy"
    assert result.metrics["accuracy"] > 0.9
    gold, predicted = columns(tmp_path / "predictions" / "dev.conll")
    assert result.metrics == {
        "accuracy": metrics.accuracy_score(gold, predicted),
        "macro_f1": metrics.f1_score(gold, predicted, average="macro", zero_division=0.0),
    }
    statistics = TrialStatistics(
        task="tagging", start="x", metric="accuracy", score=1.0, dev=result.metrics, best_epoch=1, seconds=1.0,
        **result.more.to_json(),
    )  # fmt: skip
    most_common = max(set(gold), key=gold.count)
    assert statistics.chance == gold.count(most_common) / len(gold)
    assert statistics.schemes == {"train": "tokens", "dev": "tokens", "test": "tokens"}
    assert statistics.dev_by_type is not None
    assert statistics.dev_by_type["NOUN"]["words"] == gold.count("NOUN")
    gold, predicted = columns(tmp_path / "predictions" / "test.conll")
    assert (statistics.test or {})["accuracy"] == metrics.accuracy_score(gold, predicted)
    assert "5 plain labels" in capsys.readouterr().out


def test_spans_without_a_type(tmp_path: Path, single_process: Processes) -> None:
    problem, result = fitted(tmp_path, single_process, {"DET": "B", "NOUN": "I"})
    assert problem.labels == ("O", "B", "I")
    assert result.metrics["f1"] > 0.9
    assert set(result.more.dev_by_type or {}) == {"_"}


def test_files_of_different_kinds_are_refused_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (tmp_path / "spans.txt").write_text("dog O\nman B-PER\n")
    (tmp_path / "plain.txt").write_text("dog NOUN\n")
    config = TaggingConfig(train_file=str(tmp_path / "spans.txt"), dev_file=str(tmp_path / "plain.txt"))
    message = (
        r"plain\.txt:1: label 'NOUN' is one of tokens, and \S+spans\.txt:2: label 'B-PER' one of iob2; give files with"
    )
    with pytest.raises(InputError, match=message):
        open_tagging(config, str(tmp_path))


def test_scores_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(5)
    gold, predicted = ([list(map(str, generator.choice(list("ABC"), 7))) for _ in range(9)] for _ in range(2))
    flat = [[label for labels in each for label in labels] for each in (gold, predicted)]
    assert token_scores(gold, predicted) == {
        "accuracy": metrics.accuracy_score(*flat),
        "macro_f1": metrics.f1_score(*flat, average="macro"),
    }
    report = metrics.classification_report(*flat, output_dict=True)
    for name, row in scores_by_token_label(gold, predicted).items():
        assert (row["precision"], row["recall"], row["f1"]) == tuple(
            report[name][key] for key in ("precision", "recall", "f1-score")
        )
        assert row["words"] == report[name]["support"]
