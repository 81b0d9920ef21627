"""Several labels per row, from real titles of Wikipedia: which words they hold, learned and served by transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import transformers

from pipelines.contract.recipe import read_recipe
from pipelines.statistics.training import TrialStatistics
from training.bert.heads import BertForPreTraining
from training.bert.huggingface import huggingface_config, write_model
from training.bert.modeling import initialize_weights
from training.engine.processes import Processes
from training.settings.model import ModelConfig
from training.stages.sections import FinetuningSections
from training.trials.running import beginning_of, open_problem, run_trial
from training.trials.trial_plan import trial_of

MODEL = ModelConfig(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
LABELS = ("in", "list", "of", "station", "the")
ROWS, VOCABULARY_SIZE = 700, 5_000


def titles(shared_data: Path) -> list[str]:
    found: dict[str, None] = {}
    for path in sorted((shared_data / "corpora" / "enwiki_extract").glob("*/*")):
        found |= dict.fromkeys(re.findall(r'^<doc id="\d+" url="[^"]*" title="([^"]+)">', path.read_text(), re.M))
    labelled = [title for title in found if words_of(title)]
    plain = [title for title in found if not words_of(title)]
    return [title for pair in zip(labelled, plain, strict=False) for title in pair][:ROWS]


def words_of(title: str) -> list[str]:
    return [label for label in LABELS if label in re.findall(r"[a-z]+", title.lower())]


def write_encoder(folder: Path, vocabulary_file: Path) -> None:
    (folder / "vocabulary").mkdir()
    words = vocabulary_file.read_text().split("\n")[:VOCABULARY_SIZE]
    (folder / "vocabulary" / "vocab.txt").write_text("\n".join(words) + "\n")
    model = BertForPreTraining(MODEL, VOCABULARY_SIZE)
    initialize_weights(model, 0.2, 3)
    config = huggingface_config(MODEL, VOCABULARY_SIZE, "BertForPreTraining")
    write_model(str(folder / "encoder"), model.state_dict(), config, str(folder / "vocabulary"))


def test_titles_of_wikipedia_get_the_words_they_hold(
    shared_data: Path, single_process: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_encoder(tmp_path, shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    rows = [{"title": title, "words": words_of(title)} for title in titles(shared_data)]
    assert len(rows) == ROWS
    (tmp_path / "titles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"""
run = {{ workspace = "{tmp_path}/workspace" }}
[finetuning]
encoder = "{tmp_path}/encoder"
learning_rate = 2e-3
batch_size = 16
num_train_epochs = 6
max_seq_length = 32
precision = "fp32"
[[finetuning.tables]]
name = "titles"
train_file = "{tmp_path}/titles.jsonl"
dev_share = 0.2
text = ["title"]
label = "words"
kind = "multi"
threshold = 0.4
""")
    sections = FinetuningSections.of(read_recipe(str(recipe)))
    trial = trial_of(sections, "titles", "pretrained")
    statistics: TrialStatistics = run_trial(trial, beginning_of(trial), open_problem(trial, None), single_process)
    assert statistics.metric == "micro_f1"
    assert statistics.labels == list(LABELS)
    assert statistics.score > 0.5 > 0.4 > statistics.chance
    assert set(statistics.dev) == {"micro_f1", "macro_f1", "exact_match"}
    assert "rows without a label" in capsys.readouterr().out
    trained = Path(trial.directory)
    config = json.loads((trained / "model" / "config.json").read_text())
    assert (config["problem_type"], config["threshold"]) == ("multi_label_classification", 0.4)
    by_label = json.loads((trained / "predictions" / "dev_by_label.json").read_text())
    assert list(by_label) == list(LABELS)

    lines = [json.loads(line) for line in (trained / "predictions" / "dev.jsonl").read_text().splitlines()]
    assert len(lines) == statistics.dev_rows
    classify = transformers.pipeline("text-classification", str(trained / "model"), top_k=None)
    for line, answers in zip(
        lines[:40], classify([rows[line["line"] - 1]["title"] for line in lines[:40]]), strict=True
    ):
        assert line["label"] == rows[line["line"] - 1]["words"]
        scores = {answer["label"]: answer["score"] for answer in answers}
        assert scores == pytest.approx(line["probabilities"], abs=1e-4)
        assert line["prediction"] == [name for name in LABELS if line["probabilities"][name] >= 0.4]
    assert {len(line["prediction"]) for line in lines} >= {0, 1}
