"""Tiny models of every kind and casing, written as training writes them, and the answers of training's evaluation."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.support.statistics import statistics_with

from flows.parameters.whole_recipe import WholeRecipe
from flows.registry.logged_models import ModelFiles
from flows.registry.model_card import card_facts
from flows.registry.model_to_register import ModelToRegister
from flows.registry.promotion import CHAMPION, move_alias
from flows.registry.registration import log_version
from flows.tracking.runs import Tracker
from pipelines.contract import storage
from pipelines.contract.manifest import Manifest, StageKey, record_of
from pipelines.contract.schemas import SPECIAL_TOKENS
from pipelines.contract.statistics import Statistics
from pipelines.statistics.training import TrialStatistics
from pipelines.wordpiece.word_counts import tokenizer_files
from training.bert.config_file import read_config
from training.bert.heads import BertForPreTraining
from training.bert.huggingface import huggingface_config, load_into, read_weights, write_model
from training.bert.modeling import initialize_weights
from training.bert.packing import pack
from training.features.extractor import FeatureExtractor, load_encoder
from training.finetuning.classifier import BertForSequenceClassification
from training.finetuning.problem import Batches, Forward
from training.finetuning.text import EncodedText, TextEncoder
from training.glue.problem import described_task
from training.settings.finetuning import ClassifierHead
from training.settings.glue import TASKS
from training.settings.model import ModelConfig
from training.settings.squad import SquadConfig
from training.settings.tables import TableConfig
from training.settings.tagging import TaggingConfig
from training.squad.heads import BertForQuestionAnswering
from training.squad.problem import open_squad
from training.tables.problem import TableProblem
from training.tables.reading import read_splits
from training.tagging.problem import TaggingProblem, open_tagging

MAX_SEQ_LENGTH = 16
WINDOWS = {"max_seq_length": MAX_SEQ_LENGTH, "doc_stride": 4, "max_query_length": 5, "max_answer_length": 6}
CONFIG = ModelConfig.model_validate(
    {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
)
PLAIN = ["it", "returns", "the", "number", "of", "items", "in", "list", ".", ",", "a", "first"]
NAMED = [
    "It",
    "The",
    "List",
    "Daniel",
    "daniel",
    "Café",
    "café",
    "cafe",
    "CAF",
    "##É",
    "caf",
    "##é",
    "##e",
    "M",
    "##ark",
]
WORDS = [*SPECIAL_TOKENS, *PLAIN, *NAMED, "mark"]
CASINGS: dict[str, tuple[bool, bool | None]] = {
    "cased": (False, None),
    "uncased": (True, None),
    "accents": (True, False),
}
"""`lowercase` and `strip_accents` of the vocabularies."""

LONG = "the items of Café Daniel " * 12
"""Longer than the positions of the models."""
MASKED = ["it [MASK] the List .", "a [MASK] of Café items", f"Daniel [MASK] {LONG}"]
# The last two are longer than the models' rows.
SENTENCES = ["It returns the number of Café items.", "items the of number returns it", "a List of items " * 4, LONG]
PAIRS = [
    {"text": "it returns Daniel the List", "text_pair": "It returns a number of items"},
    {"text": "a first number, a café", "text_pair": 'it\'s the "first" Café'},
    {"text": LONG, "text_pair": "the list"},
]
CONTEXT = (
    "it returns the number of items in the list . a List , the first item\u0301s of Café returns a number in a list ."
)
QUESTIONS = [
    {"question": "the number of the items in it", "context": CONTEXT},
    {"question": "first", "context": "the first"},
    {"question": "a list", "context": "it returns the items"},
    *(
        {
            "question": "the first Item",
            "context": "the " + " ".join(random.Random(seed).choices([*PLAIN, "Daniel", "Café", "MARK"], k=40)),
        }
        for seed in range(8)
    ),
]
FEATURES = ["Daniel of the Café", "cafe\u0301 MARK", "the"]


@dataclass(frozen=True)
class Variant:
    """A kind of model with a casing."""

    kind: str
    casing: str

    @property
    def key(self) -> str:
        return f"{self.casing}-{self.kind}"

    @property
    def name(self) -> str:
        return f"trial-{self.key}"


KINDS = (
    "encoder", "single", "pair", "regression", "means", "means-single", "means-regression", "squad", "squad-2",
    "tagging", "table", "multi", "multi-means",
)  # fmt: skip
VARIANTS = [
    *(Variant(kind, "cased") for kind in KINDS),
    *(Variant(kind, "uncased") for kind in ("encoder", "tagging", "squad")),
    *(Variant(kind, "accents") for kind in ("encoder", "tagging", "single")),
]
_TASKS = {
    "single": "cola",
    "pair": "mrpc",
    "regression": "sts-b",
    "means": "mrpc",
    "means-single": "cola",
    "means-regression": "sts-b",
}
"""Those with `means` have the head `segment_means`."""


def tagged_rows(count: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """Words and labels: the label of a word depends on its capital letter, or its accent."""
    labels = {"Daniel": "B-PER", "Café": "B-LOC", "Mark": "B-PER"}
    generator = random.Random(seed)
    sentences = []
    for _ in range(count):
        length = generator.randint(2, 40)
        words = generator.choices(
            ["Daniel", "daniel", "Café", "café", "cafe", "Mark", "mark", "the", "items"], k=length
        )
        sentences.append((words, [labels.get(word, "O") for word in words]))
    return sentences


TAGGED = [(["it", "returns", "Daniel", "items", "of", "Café", "."], ["O", "O", "B-PER", "O", "O", "B-LOC", "O"])]
TAGGED += tagged_rows(12, seed=2)
INPUTS: dict[str, list[Any]] = {
    "encoder": MASKED,
    "single": SENTENCES,
    "pair": PAIRS,
    "regression": PAIRS,
    "means": PAIRS,
    "means-single": [{"text": sentence} for sentence in SENTENCES],
    "means-regression": PAIRS,
    "squad": QUESTIONS,
    "squad-2": QUESTIONS,
    "tagging": [" ".join(words) for words, _ in TAGGED],
    "table": SENTENCES,
    "multi": PAIRS,
    "multi-means": PAIRS,
}
_SEVERAL_LABELS = [["to the point", "new"], [], ["new", "old"]]
_TABLE_LABELS: dict[str, list[Any]] = {
    "table": ["very good", "bad", "none", "bad"],
    "multi": _SEVERAL_LABELS,
    "multi-means": _SEVERAL_LABELS,
}


def manifest_of(directory: str, stage: str, config: dict[str, Any], statistics: Statistics) -> Manifest:
    key = StageKey(stage, 1, config, {"vocabulary": "0" * 64})
    records = [record_of(directory, name, rows=0) for name in storage.list_files(directory)]
    return key.manifest(records, statistics, "0.1.0")


@dataclass(frozen=True)
class Written:
    """A model's directory, and training's answers to its inputs."""

    directory: str
    expected: Any
    null_threshold: float | None = None
    training_f1: float | None = None


def write(variant: Variant, place: Path) -> Written:
    """Write a model as training does, from a vocabulary as preprocessing writes it."""
    vocabulary, directory = place / "vocabulary", str(place / "model")
    vocabulary.mkdir(parents=True)
    for name, content in tokenizer_files(WORDS, *CASINGS[variant.casing]).items():
        (vocabulary / name).write_bytes(content)
    if variant.kind == "tagging":
        return _write_tagger(directory, str(vocabulary), place)
    if variant.kind in _TABLE_LABELS:
        return _write_table(directory, str(vocabulary), place, variant.kind)
    architecture, more = _described(variant.kind)
    model = _model(variant.kind)
    # Weights of the usual 0.02 would give every text nearly the same answer.
    initialize_weights(model, 0.8, seed=3)
    write_model(
        directory, model.state_dict(), huggingface_config(CONFIG, len(WORDS), architecture, **more), str(vocabulary)
    )
    if variant.kind == "encoder":
        return Written(directory, own_words(directory))
    if variant.kind == "squad":
        return Written(directory, _predictions(directory, place, None))
    if variant.kind == "squad-2":
        expected, threshold = own_answers_2(directory, place)
        return Written(directory, expected, threshold)
    return Written(directory, own_classes(directory, variant.kind))


def _model(kind: str) -> torch.nn.Module:
    if kind == "encoder":
        return BertForPreTraining(CONFIG, len(WORDS))
    if kind.startswith("squad"):
        return BertForQuestionAnswering(CONFIG, len(WORDS))
    return BertForSequenceClassification(CONFIG, len(WORDS), TASKS[_TASKS[kind]].num_labels, _head(kind))


def _head(kind: str) -> ClassifierHead:
    return "segment_means" if "means" in kind else "pooler"


def _described(kind: str) -> tuple[str, dict[str, Any]]:
    if kind == "encoder":
        return "BertForPreTraining", {}
    if kind.startswith("squad"):
        return "BertForQuestionAnswering", {}
    return BertForSequenceClassification.architecture(_head(kind)), described_task(TASKS[_TASKS[kind]])


def _write_tagger(directory: str, vocabulary: str, place: Path) -> Written:
    """Train a tagger on real rows; its answers and its score are those of the evaluation."""
    for name, rows in (("train", tagged_rows(30, seed=1)), ("dev", TAGGED)):
        (place / f"{name}.conll").write_text("\n\n".join(_conll(*row) for row in rows) + "\n")
    config = TaggingConfig(
        train_file=str(place / "train.conll"), dev_file=str(place / "dev.conll"), max_seq_length=MAX_SEQ_LENGTH
    )
    problem = open_tagging(config, vocabulary)
    model = problem.build_model(CONFIG, len(WORDS))
    initialize_weights(model, 0.2, seed=7)
    _fit(problem, model)
    architecture, more = problem.huggingface()
    described = huggingface_config(CONFIG, len(WORDS), architecture, **more)
    write_model(directory, model.state_dict(), described, vocabulary)
    forward = forward_of(model.eval())
    f1 = problem.evaluate(forward)["f1"]
    problem.finish(forward, str(place))
    sentences = (place / "dev.conll").read_text().strip().split("\n\n")
    expected = [[row.split(" ")[2] for row in sentence.split("\n")] for sentence in sentences]
    return Written(directory, expected, training_f1=f1)


def _write_table(directory: str, vocabulary: str, place: Path, kind: str) -> Written:
    """A model of the user's own labels with random weights; its answers are training's predictions of the rows."""
    rows = [
        {"label": label, **(each if isinstance(each, dict) else {"text": each})}
        for each, label in zip(INPUTS[kind], _TABLE_LABELS[kind], strict=True)
    ]
    path = place / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    is_multi = kind.startswith("multi")
    table = TableConfig(
        name=kind,
        train_file=str(path),
        dev_file=str(path),
        text=("text", "text_pair") if is_multi else ("text",),
        kind="multi" if is_multi else "single",
        threshold=0.4,
    )
    problem = TableProblem(table, read_splits(table), TextEncoder(vocabulary), MAX_SEQ_LENGTH, _head(kind))
    model = problem.build_model(CONFIG, len(WORDS))
    initialize_weights(model, 0.8, seed=3)
    architecture, more = problem.huggingface()
    write_model(directory, model.state_dict(), huggingface_config(CONFIG, len(WORDS), architecture, **more), vocabulary)
    problem.finish(forward_of(model.eval()), str(place))
    lines = [json.loads(line) for line in (place / "dev.jsonl").read_text().splitlines()]
    if is_multi:
        return Written(directory, [{"labels": line["prediction"], **line} for line in lines])
    scores = [line["probabilities"][line["prediction"]] for line in lines]
    return Written(
        directory,
        [{"label": line["prediction"], "score": score} for line, score in zip(lines, scores, strict=True)],
    )


def _conll(words: list[str], labels: list[str]) -> str:
    return "\n".join(f"{word} {label}" for word, label in zip(words, labels, strict=True))


def _fit(problem: TaggingProblem, model: torch.nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    text = problem.train_text
    rows = np.arange(len(text.lengths))
    packed = pack(np.concatenate(text.input_ids), text.lengths, text.segment_b_starts)
    for _ in range(30):
        optimizer.zero_grad()
        problem.loss_sum(model(packed), rows, packed).div(problem.num_loss_terms(rows)).backward()
        optimizer.step()


def register(tracker: Tracker, whole: WholeRecipe, run_id: str, variant: Variant, written: Written) -> str:
    """Register a model as champion; returns its version."""
    kind = variant.kind
    settings: dict[str, Any] = {"task": kind, "max_seq_length": MAX_SEQ_LENGTH}
    if kind.startswith("squad"):
        settings |= WINDOWS
    files = ModelFiles(
        variant.name,
        written.directory,
        {} if kind == "encoder" else settings,
        takes_pairs=INPUTS[kind] is PAIRS,
        null_threshold=written.null_threshold,
    )
    statistics = statistics_with(TrialStatistics, metric="f1", score=0.5, dev={"accuracy": 0.75}, train_rows=7)
    manifest = manifest_of(written.directory, "finetuning", settings, statistics)
    model = ModelToRegister(files, manifest, None, card_facts(whole, files, manifest))
    number = log_version(tracker, run_id, model)
    move_alias(tracker.client, files.name, CHAMPION, number)
    return number


def own_features(directory: str) -> list[list[float]]:
    """The last layer's mean of each text, as extract_features writes it."""
    encoder = load_encoder(directory)
    extractor = FeatureExtractor(
        encoder.model, encoder.tokenizer, np.array([1]), "mean", CONFIG.max_position_embeddings
    )
    vectors: list[list[float]] = extractor.line_vectors(FEATURES).tolist()
    return vectors


def own_words(directory: str) -> list[str]:
    """The most probable word at each text's mask, by training's model; longer texts are truncated at the positions."""
    config, vocab_size = read_config(directory)
    model = BertForPreTraining(config, vocab_size).eval()
    load_into(model, read_weights(directory), directory)
    words = []
    for text in MASKED:
        before, _, after = text.partition("[MASK]")
        ids_a, ids_b = (TextEncoder(directory).encode([part], None, 99).input_ids[0][1:-1] for part in (before, after))
        row = np.concatenate([[2], ids_a, [4], ids_b])[: CONFIG.max_position_embeddings - 1]
        row = np.append(row, 3)
        length = np.array([len(row)])
        with torch.no_grad():
            hidden, _ = model.bert(pack(row, length, length))
            logits = model.cls.predictions.logits(hidden)[len(ids_a) + 1]
        words.append(WORDS[int(logits.argmax())])
    return words


def own_classes(directory: str, kind: str, length: int = MAX_SEQ_LENGTH) -> list[dict[str, Any]]:
    """Label and score of each text truncated to a length, by training's model."""
    answers = []
    for outputs in _own_outputs(directory, kind, length):
        is_score = kind.endswith("regression")
        scores = outputs if is_score else dict(zip(outputs, _softmax(list(outputs.values())), strict=True))
        best = max(scores, key=scores.__getitem__)
        answers.append({"label": best, "score": scores[best]})
    return answers


def own_probabilities(directory: str, length: int) -> list[dict[str, float]]:
    """The probability of each label of PAIRS truncated to a length, by training's model."""
    outputs = _own_outputs(directory, "multi", length)
    return [{name: float(torch.tensor(each).sigmoid()) for name, each in logits.items()} for logits in outputs]


def _softmax(logits: list[float]) -> list[float]:
    return torch.tensor(logits).softmax(0).tolist()  # type: ignore[no-any-return]  # torch leaves it untyped


def _own_outputs(directory: str, kind: str, length: int) -> list[dict[str, float]]:
    """The outputs for each text, by the name of the output."""
    config, vocab_size = read_config(directory)
    with open(os.path.join(directory, "config.json")) as stream:
        names = json.load(stream)["id2label"]
    model = BertForSequenceClassification(config, vocab_size, len(names), _head(kind)).eval()
    load_into(model, read_weights(directory), directory)
    if kind in ("single", "means-single", "table"):
        text = TextEncoder(directory).encode(SENTENCES, None, length)
    else:
        firsts, seconds = ([pair[key] for pair in PAIRS] for key in ("text", "text_pair"))
        text = TextEncoder(directory).encode(firsts, seconds, length)
    return [dict(zip(names.values(), logits[0].tolist(), strict=True)) for _, _, logits in forward_of(model)(text)]


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


def _loaded(problem: Any, directory: str) -> torch.nn.Module:
    config, vocab_size = read_config(directory)
    model: torch.nn.Module = problem.build_model(config, vocab_size).eval()
    load_into(model, read_weights(directory), directory)
    return model


def forward_of(model: torch.nn.Module) -> Forward:
    """Row by row; training's loop batches them, which changes only the last digits of sums."""

    def forward(text: EncodedText) -> Batches:
        for row in range(len(text.lengths)):
            rows = np.array([row])
            packed = pack(text.input_ids[row], text.lengths[rows], text.segment_b_starts[rows])
            with torch.no_grad():
                output = model(packed).float()
            yield rows, packed, output

    return forward
