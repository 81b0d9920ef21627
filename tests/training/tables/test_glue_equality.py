"""Real tables made of GLUE's files, in formats and with labels of their own: scores and predictions equal GLUE's.

The encoder, the seed, the rows and their order are the same on both paths.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch

from pipelines.contract.manifest import read_manifest
from pipelines.contract.recipe import read_recipe
from pipelines.statistics.training import TrialStatistics
from training.bert.heads import BertForPreTraining
from training.bert.huggingface import huggingface_config, write_model
from training.bert.modeling import initialize_weights
from training.engine.processes import Processes
from training.glue.reading import LabelledText, read_examples
from training.settings.glue import TASKS
from training.settings.model import ModelConfig
from training.stages.sections import FinetuningSections
from training.trials.running import beginning_of, open_problem, run_trial
from training.trials.trial_plan import data_directory, trial_of

MODEL = ModelConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64
)
WORDS = {"sst-2": ("negative", "positive"), "mrpc": ("different", "equivalent"), "sts-b": ()}
"""Labels in the table, in the order of GLUE's class numbers: a table's are sorted."""

TRAIN_ROWS, DEV_ROWS, HEADER_ROWS = 90, 60, 1


@pytest.fixture(scope="module")
def encoder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, and BERT's own vocabulary."""
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = folder / "vocabulary"
    vocabulary.mkdir()
    shutil.copyfile(shared_data / "vocab" / "bert-base-uncased-vocab.txt", vocabulary / "vocab.txt")
    num_words = len((vocabulary / "vocab.txt").read_text().split("\n")) - 1
    model = BertForPreTraining(MODEL, num_words)
    initialize_weights(model, 0.1, 3)
    config = huggingface_config(MODEL, num_words, "BertForPreTraining")
    write_model(str(folder / "model"), model.state_dict(), config, str(vocabulary))
    return folder / "model"


@pytest.fixture(scope="module")
def glue(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of three tasks."""
    folder = tmp_path_factory.mktemp("glue")
    for task in ("SST-2", "MRPC", "STS-B"):
        (folder / task).mkdir()
        for name, rows in (("train.tsv", TRAIN_ROWS), ("dev.tsv", DEV_ROWS)):
            lines = (shared_data / "glue" / task / name).read_bytes().split(b"\n")
            (folder / task / name).write_bytes(b"\n".join(lines[: HEADER_ROWS + rows]) + b"\n")
        shutil.copyfile(folder / task / "dev.tsv", folder / task / "copy.tsv")
    return folder


def named_rows(task: str, examples: LabelledText) -> list[dict[str, Any]]:
    names = WORDS[task]
    assert examples.labels is not None
    seconds = examples.sentences_b or [None] * len(examples)
    return [
        {"second": second, "grade": names[int(label)] if names else label, "first": first}
        for first, second, label in zip(examples.sentences_a, seconds, examples.labels, strict=True)
    ]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


Write = Callable[[Path, list[dict[str, Any]]], None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "suffix", "write", "settings"),
    [
        ("sst-2", "csv", write_csv, ""),
        ("mrpc", "jsonl", write_json_lines, 'metric = "f1"\npositive_label = "equivalent"\n'),
        ("sts-b", "parquet", write_parquet, 'kind = "regression"\n'),
    ],
)
def test_a_table_equals_the_task_of_glue(
    glue: Path,
    encoder: Path,
    single_process: Processes,
    tmp_path: Path,
    task: str,
    suffix: str,
    write: Write,
    settings: str,
) -> None:
    for split in ("train", "dev"):
        write(
            tmp_path / f"{split}.{suffix}",
            named_rows(task, read_examples(TASKS[task], str(glue / TASKS[task].folder / f"{split}.tsv"))),
        )
    columns = '["first", "second"]' if TASKS[task].sentence_b else '["first"]'
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"""
run = {{ workspace = "{tmp_path / "workspace"}" }}
[finetuning]
tasks = ["{task}", "own"]
glue_dir = "{glue}"
encoder = "{encoder}"
learning_rate = 1e-2
batch_size = 16
num_train_epochs = 2
max_seq_length = 48
precision = "fp32"
[[finetuning.tables]]
name = "own"
train_file = "{tmp_path}/train.{suffix}"
dev_file = "{tmp_path}/dev.{suffix}"
test_file = "{tmp_path}/dev.{suffix}"
text = {columns}
label = "grade"
{settings}
""")
    sections = FinetuningSections.of(read_recipe(str(recipe)))
    found: dict[str, TrialStatistics] = {}
    for name in (task, "own"):
        trial = trial_of(sections, name, "pretrained")
        problem = open_problem(trial, data_directory(sections, name))
        found[name] = run_trial(trial, beginning_of(trial), problem, single_process)
    glue_trial, table_trial = found.values()
    for metric, value in glue_trial.dev.items():
        assert table_trial.dev[metric] == value, metric
    assert (table_trial.metric, table_trial.score) == (glue_trial.metric, glue_trial.score)
    assert table_trial.chance == glue_trial.chance
    assert table_trial.majority_baseline == glue_trial.majority_baseline
    assert (table_trial.train_rows, table_trial.dev_rows) == (TRAIN_ROWS, DEV_ROWS)
    assert table_trial.test == table_trial.dev

    directories = [tmp_path / "workspace" / "finetuning" / name / "pretrained" for name in (task, "own")]
    weights = [safetensors.torch.load_file(directory / "model" / "model.safetensors") for directory in directories]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        np.testing.assert_array_equal(tensor.numpy(), weights[1][name].numpy(), err_msg=name)
    configs = [json.loads((directory / "model" / "config.json").read_text()) for directory in directories]
    assert configs[1].pop("finetuning_task") == "own"
    assert configs[0].pop("finetuning_task") == task
    assert list(configs[1].pop("id2label").values()) == list(WORDS[task] or ["score"])
    assert configs[1].pop("label2id") == {name: number for number, name in enumerate(WORDS[task] or ["score"])}
    del configs[0]["id2label"], configs[0]["label2id"]
    assert configs[0] == configs[1]
    manifests = [read_manifest(str(directory)) for directory in directories]
    assert manifests[1] is not None
    assert str(tmp_path) not in json.dumps(manifests[1].config)

    lines = [json.loads(line) for line in (directories[1] / "predictions" / "dev.jsonl").read_text().splitlines()]
    assert len(lines) == DEV_ROWS
    assert (directories[1] / "predictions" / "test.jsonl").read_bytes() == (
        directories[1] / "predictions" / "dev.jsonl"
    ).read_bytes()
    if task == "sst-2":
        right = [line["label"] == line["prediction"] for line in lines]
        assert sum(right) / DEV_ROWS == table_trial.score
        assert set(lines[0]["probabilities"]) == {"negative", "positive"}
        assert sum(lines[0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert lines[0]["line"] == 2
