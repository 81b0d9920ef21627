"""Tiny models of every kind in a registry, inputs for them, and what training's own evaluation answers to these."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
import torch

from flows.logged_models import ModelFiles
from flows.model_card import card_facts
from flows.promotion import CHAMPION, move_alias
from flows.registry import Made, log_version
from flows.tracking import Tracker
from flows.whole_recipe import WholeRecipe
from pipelines import storage
from pipelines.contract import Manifest, StageKey, record_of
from training.fitting import Batches, Forward
from training.heads import BertForPreTraining, BertForSequenceClassification
from training.interchange import load_into, read_config, read_weights
from training.packing import pack
from training.squad.config import SquadConfig
from training.squad.problem import open_squad
from training.tagging.config import TaggingConfig
from training.tagging.problem import open_tagging
from training.text import EncodedText, TextEncoder

MAX_SEQ_LENGTH = 16
WINDOWS = {"max_seq_length": MAX_SEQ_LENGTH, "doc_stride": 4, "max_query_length": 5, "max_answer_length": 6}

MASKED = ["it [MASK] the list .", "a [MASK] of items"]
# The last one is longer than the model's rows.
SENTENCES = ["It returns the number of items.", "items the of number returns it", "a list of the first items " * 4]
PAIRS = [
    {"text": "it returns the list", "text_pair": "it returns a number of items"},
    {"text": "a first number, a list", "text_pair": 'it\'s the "first" number'},
]
CONTEXT = (
    "it returns the number of items in the list . a list , the first item\u0301s of it returns a number in a list ."
)
QUESTIONS = [
    {"question": "the number of the items in it", "context": CONTEXT},
    {"question": "first", "context": "the first"},
    {"question": "a list", "context": "it returns the items"},
    *(
        {
            "question": "the first item",
            "context": "the " + " ".join(random.Random(seed).choices(tiny_models.WORDS[5:], k=40)),
        }
        for seed in range(8)
    ),
]
TAGGED = [
    "it returns unheard-of items .",
    "the first number of items in the list , a list , a number of the first items",
]

NAMES = {
    "encoder": "trial-encoder",
    "single": "trial-cola",
    "pair": "trial-mrpc",
    "regression": "trial-sts-b",
    "squad": "trial-squad",
    "squad-2": "trial-squad-2",
    "tagging": "trial-tagging",
}
INPUTS: dict[str, list[Any]] = {
    "encoder": MASKED,
    "single": SENTENCES,
    "pair": PAIRS,
    "regression": PAIRS,
    "squad": QUESTIONS,
    "squad-2": QUESTIONS,
    "tagging": TAGGED,
}


def manifest_of(directory: str, stage: str, config: dict[str, Any], statistics: dict[str, Any]) -> Manifest:
    key = StageKey(stage, 1, config, {"vocabulary": "0" * 64})
    records = [record_of(directory, name, rows=0) for name in storage.list_files(directory)]
    return key.manifest(records, statistics, "0.1.0")


def write(kind: str, directory: str) -> None:
    """Write the tiny model of a kind."""
    writers = {
        "encoder": tiny_models.write_tiny_encoder,
        "regression": tiny_models.write_tiny_regressor,
        "tagging": tiny_models.write_tiny_tagger,
        "squad": tiny_models.write_tiny_answerer,
        "squad-2": tiny_models.write_tiny_answerer,
    }
    writers.get(kind, tiny_models.write_tiny_classifier)(directory)


def register(
    tracker: Tracker, whole: WholeRecipe, run_id: str, kind: str, directory: str, threshold: float | None = None
) -> str:
    """Register the model of a kind as champion; returns its version."""
    settings: dict[str, Any] = {"task": kind, "max_seq_length": MAX_SEQ_LENGTH}
    if kind.startswith("squad"):
        settings |= WINDOWS
    files = ModelFiles(
        NAMES[kind],
        directory,
        {} if kind == "encoder" else settings,
        takes_pairs=kind in ("pair", "regression"),
        null_threshold=threshold,
    )
    statistics = {"metric": "f1", "score": 0.5, "dev": {"accuracy": 0.75}, "train_rows": 7}
    manifest = manifest_of(directory, "finetuning", settings, statistics)
    card = card_facts(whole, files.name, files.pipeline_task, files.takes_pairs, manifest)
    number = log_version(tracker, run_id, Made(files, manifest, None), card)
    move_alias(tracker.client, files.name, CHAMPION, number)
    return number


def own_words(directory: str) -> list[str]:
    """The most probable word at each text's mask, by training's model."""
    config, vocab_size = read_config(directory)
    model = BertForPreTraining(config, vocab_size).eval()
    load_into(model, read_weights(directory), directory)
    words = []
    for text in MASKED:
        before, _, after = text.partition("[MASK]")
        ids_a, ids_b = (TextEncoder(directory).encode([part], None, 99).input_ids[0][1:-1] for part in (before, after))
        row = np.concatenate([[2], ids_a, [4], ids_b, [3]])
        length = np.array([len(row)])
        with torch.no_grad():
            hidden, _ = model.bert(pack(row, length, length))
            logits = model.cls.predictions.logits(hidden)[len(ids_a) + 1]
        words.append(tiny_models.WORDS[int(logits.argmax())])
    return words


def own_classes(directory: str, kind: str) -> list[dict[str, Any]]:
    """Label and score of each text, by training's model."""
    config, vocab_size = read_config(directory)
    with open(os.path.join(directory, "config.json")) as stream:
        names = json.load(stream).get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    model = BertForSequenceClassification(config, vocab_size, len(names)).eval()
    load_into(model, read_weights(directory), directory)
    if kind == "single":
        text = TextEncoder(directory).encode(SENTENCES, None, MAX_SEQ_LENGTH)
    else:
        firsts, seconds = ([pair[key] for pair in PAIRS] for key in ("text", "text_pair"))
        text = TextEncoder(directory).encode(firsts, seconds, MAX_SEQ_LENGTH)
    answers = []
    for _, _, logits in forward_of(model)(text):
        scores = logits[0] if kind == "regression" else logits[0].softmax(0)
        best = int(scores.argmax())
        answers.append({"label": names[str(best)], "score": float(scores[best])})
    return answers


def own_answers(directory: str, scratch: Path) -> list[str]:
    """Predictions that training's evaluation scores for SQuAD 1.1."""
    return _predictions(directory, scratch, None)


def own_answers_2(directory: str, scratch: Path) -> tuple[list[str], float]:
    """Those for SQuAD 2.0, with a threshold under which some questions have an answer and some have none."""
    _predictions(directory, scratch, 0.0)
    odds = sorted(json.loads((scratch / "null_odds.json").read_bytes()).values())
    threshold = (odds[0] + odds[1]) / 2
    return _predictions(directory, scratch, threshold), threshold


def _predictions(directory: str, scratch: Path, threshold: float | None) -> list[str]:
    def asked(number: int, question: dict[str, str]) -> dict[str, Any]:
        impossible = threshold is not None and number == 2
        answer = {"text": "the", "answer_start": question["context"].index("the")}
        answers = [] if impossible else [answer]
        qas = {"id": str(number), "question": question["question"], "is_impossible": impossible, "answers": answers}
        return {"title": "t", "paragraphs": [{"context": question["context"], "qas": [qas]}]}

    path = scratch / "squad.json"
    path.write_text(json.dumps({"data": [asked(number, question) for number, question in enumerate(QUESTIONS)]}))
    config = SquadConfig(train_file=str(path), dev_file=str(path), null_threshold=threshold, **WINDOWS)
    problem = open_squad(config, directory)
    problem.finish(forward_of(_loaded(problem, directory)), str(scratch))
    predictions = json.loads((scratch / "predictions.json").read_bytes())
    return [predictions[str(number)] for number in range(len(QUESTIONS))]


def own_tags(directory: str, scratch: Path) -> list[list[str]]:
    """The labels that training's evaluation scores."""
    labels = ["B-LOC", "I-LOC", *["O"] * 99]
    rows = ["\n".join(f"{word} {label}" for word, label in zip(text.split(), labels, strict=False)) for text in TAGGED]
    path = scratch / "tags.conll"
    path.write_text("\n\n".join(rows) + "\n")
    config = TaggingConfig(train_file=str(path), dev_file=str(path), max_seq_length=MAX_SEQ_LENGTH)
    problem = open_tagging(config, directory)
    problem.finish(forward_of(_loaded(problem, directory)), str(scratch))
    sentences = (scratch / "dev.conll").read_text().strip().split("\n\n")
    return [[row.split(" ")[2] for row in sentence.split("\n")] for sentence in sentences]


def _loaded(problem: Any, directory: str) -> torch.nn.Module:
    config, vocab_size = read_config(directory)
    model: torch.nn.Module = problem.build_model(config, vocab_size).eval()
    load_into(model, read_weights(directory), directory)
    return model


def forward_of(model: torch.nn.Module) -> Forward:
    """Row by row; the loop of training batches them, which only changes sums in their last digits."""

    def forward(text: EncodedText) -> Batches:
        for row in range(len(text.lengths)):
            rows = np.array([row])
            packed = pack(text.input_ids[row], text.lengths[rows], text.segment_b_starts[rows])
            with torch.no_grad():
                output = model(packed).float()
            yield rows, packed, output

    return forward
