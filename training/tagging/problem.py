"""Tagging as a problem of the fine-tuning loop: labels from each word's first sub-token (paper, section 5.3)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.statistics.training import FamilyStatistics
from training.bert.model_readme import FEATURES_TAGGER
from training.bert.packing import IntArray, PackedSequences
from training.bert.two_directions import build_encoder
from training.finetuning.problem import Forward, TaskInputs
from training.finetuning.text import TextEncoder
from training.kernels.dropout import Dropout
from training.settings.model import ModelConfig
from training.settings.tagging import TaggingConfig, data_files
from training.tagging.encoding import TaggingRows, encode_words
from training.tagging.features import NEW_PARTS, FeaturesForTokenClassification
from training.tagging.reading import DOCUMENT_START, TaggedText, read_conll
from training.tagging.schemes import OUTSIDE, label_of
from training.tagging.scores import scores_by_token_label, scores_by_type, span_scores, token_scores

CLASSIFIER = "classifier."


class BertForTokenClassification(nn.Module):
    """One dense layer on each token's output, after dropout; named as in Hugging Face's class, without pooler."""

    def __init__(self, config: ModelConfig, vocab_size: int, num_labels: int) -> None:
        super().__init__()
        self.bert = build_encoder(config, vocab_size, with_pooler=False)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.output_size, num_labels)

    def forward(self, sequences: PackedSequences) -> torch.Tensor:
        """Logits [T, C] of a packed batch."""
        hidden_TH, _ = self.bert(sequences)
        logits_TC: torch.Tensor = self.classifier(self.dropout(hidden_TH))
        return logits_TC


@dataclass(frozen=True)
class TaggedFile:
    """A file and its rows."""

    text: TaggedText
    rows: TaggingRows

    def gold(self) -> list[list[str]]:
        return [list(sentence.labels) for sentence in self.text.sentences]


class TaggingProblem:
    """Tagging as a `Problem`.

    Labels are IOB2, O first, then B- and I- of each type of the training file; or its plain labels, sorted, which are
    scored by accuracy.
    """

    head_prefixes: tuple[str, ...] = (CLASSIFIER,)

    def __init__(
        self,
        train: TaggedFile,
        dev: TaggedFile,
        test: TaggedFile | None,
        encoder: TextEncoder,
        feature_layers: tuple[int, ...] = (),
        feature_mix: str = "concatenated",
    ) -> None:
        """Prepare the files; the last two arguments as in `TaggingConfig`."""
        self._train, self._dev = train, dev
        self._feature_layers, self._feature_mix = feature_layers, feature_mix
        if feature_layers:
            self.head_prefixes = NEW_PARTS
        self._files = {"train": train, "dev": dev} | ({"test": test} if test else {})
        self.train_text = train.rows.text
        self.metric = "accuracy" if train.text.is_plain else "f1"
        self.labels = tuple(train.text.types)
        if not train.text.is_plain:
            self.labels = (OUTSIDE, *(label_of(prefix, name) for name in train.text.types for prefix in "BI"))
        self.coverage = encoder.coverage(
            word for file in (train, dev) for sentence in file.text.sentences for word in sentence.words
        )
        ids = {label: index for index, label in enumerate(self.labels)}
        self._label_ids: IntArray = np.array(
            [ids[label] for sentence in train.text.sentences for label in sentence.labels], dtype=np.int64
        )

    def build_model(self, model: ModelConfig, vocab_size: int) -> nn.Module:
        if self._feature_layers:
            is_sum = self._feature_mix == "weighted_sum"
            return FeaturesForTokenClassification(model, vocab_size, len(self.labels), self._feature_layers, is_sum)
        return BertForTokenClassification(model, vocab_size, len(self.labels))

    def loss_sum(self, output: torch.Tensor, rows: IntArray, packed: PackedSequences) -> torch.Tensor:
        """Cross-entropy over the words labelled by the rows; output [T, C]."""
        positions, labels = (
            torch.from_numpy(values).to(output.device)
            for values in (_positions(self._train.rows, rows, packed), self._label_ids[self._train.rows.words(rows)])
        )
        return functional.cross_entropy(output.index_select(0, positions).float(), labels, reduction="sum")

    def num_loss_terms(self, rows: IntArray) -> int:
        return self._train.rows.num_words(rows)

    def evaluate(self, forward: Forward) -> dict[str, float]:
        return self._scores(self._dev.gold(), self._predicted(self._dev, forward))

    def finish(self, forward: Forward, directory: str) -> FamilyStatistics:
        """Write dev.conll and, with a test file, test.conll; scores by type, and those on the test file."""
        statistics = FamilyStatistics(
            labels=list(self.labels),
            train_sentences=len(self._train.text.sentences),
            dev_sentences=len(self._dev.text.sentences),
            schemes={name: file.text.scheme for name, file in self._files.items()},
        )
        results: dict[str, Any] = self._baselines()
        for name, file in self._files.items():
            if name == "train":
                continue
            predicted = self._predicted(file, forward)
            gold = file.gold()
            if name == "test":
                results["test"] = self._scores(gold, predicted)
            by_type = scores_by_token_label if file.text.is_plain else scores_by_type
            results[f"{name}_by_type"] = by_type(gold, predicted)
            storage.write_bytes(storage.join(directory, f"{name}.conll"), conll_of(file.text, predicted))
        return statistics.model_copy(update=results)

    def huggingface(self) -> tuple[str, dict[str, Any]]:
        names = {
            "id2label": {str(index): label for index, label in enumerate(self.labels)},
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }
        if self._feature_layers:
            features = {"feature_layers": list(self._feature_layers), "feature_mix": self._feature_mix}
            return FEATURES_TAGGER, names | features
        return "BertForTokenClassification", names

    def _scores(self, gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
        return (token_scores if self._train.text.is_plain else span_scores)(gold, predicted)

    def _baselines(self) -> dict[str, Any]:
        """Accuracies of the most frequent label of the training and the development file; plain labels only."""
        if not self._train.text.is_plain:
            return {}
        train, dev = (Counter(label for labels in file.gold() for label in labels) for file in (self._train, self._dev))
        ((majority, _),) = train.most_common(1)
        return {
            "majority_baseline": dev[majority] / dev.total(),
            "constant_baseline": max(dev.values()) / dev.total(),
        }

    def _predicted(self, file: TaggedFile, forward: Forward) -> list[list[str]]:
        """Each word's most probable label, sentence by sentence."""
        choices = np.full(file.text.num_words, -1, dtype=np.int64)
        for rows, packed, logits_TC in forward(file.rows.text):
            positions = torch.from_numpy(_positions(file.rows, rows, packed))
            choices[file.rows.words(rows)] = logits_TC.index_select(0, positions).argmax(1).numpy()
        assert (choices >= 0).all()
        labels = iter(choices.tolist())
        return [[self.labels[next(labels)] for _ in sentence.words] for sentence in file.text.sentences]


def _positions(own: TaggingRows, rows: IntArray, packed: PackedSequences) -> IntArray:
    return own.positions(rows, packed.first_tokens_B.cpu().numpy())


def conll_of(text: TaggedText, predicted: Sequence[Sequence[str]]) -> bytes:
    """Predictions in conlleval's format: word, gold and predicted label per row, an empty line after each sentence.

    The separator is that of the input file, labels are IOB2 or plain, and -DOCSTART- rows are restored.
    """
    lines: list[str] = []
    document = 0
    for sentence, labels in zip(text.sentences, predicted, strict=True):
        if sentence.document != document:
            document = sentence.document
            lines += [text.separator.join((DOCUMENT_START, OUTSIDE, OUTSIDE)), ""]
        columns = zip(sentence.words, sentence.labels, labels, strict=True)
        lines += [text.separator.join(row) for row in columns]
        lines.append("")
    return "\n".join([*lines, ""]).encode()


def open_task(inputs: TaskInputs) -> TaggingProblem:
    """`open_tagging` with the settings of a recipe."""
    return open_tagging(inputs.config.tagging, inputs.vocabulary_directory)


def open_tagging(config: TaggingConfig, encoder_directory: str) -> TaggingProblem:
    """Read and tokenize the files of `[finetuning.tagging]`.

    Raises:
        InputError: a file is missing or has a bad row, the training file has no spans, or a file has no document
            boundaries for context.
    """
    encoder = TextEncoder(encoder_directory)
    files: list[TaggedFile] = []
    for path in data_files(config).values():
        text = read_conll(path, config.token_column, config.label_column, config.scheme)
        if config.document_context and not text.has_documents:
            raise InputError(
                f"{path}: has no {DOCUMENT_START} rows, so documents cannot be separated; set "
                "finetuning.tagging.document_context = false"
            )
        _say(text.in_words())
        files.append(TaggedFile(text, encode_words(encoder, text, config.max_seq_length, config.document_context)))
    train, dev, *tests = files
    if not train.text.types:
        raise InputError(f"{train.text.path}: has no spans, all labels are {OUTSIDE}; is label_column right?")
    for file in files[1:]:
        if file.text.is_plain != train.text.is_plain:
            raise InputError(
                f"{file.text.example} is one of {file.text.scheme}, and {train.text.example} one of "
                f"{train.text.scheme}; give files with the same kind of labels, or set finetuning.tagging.scheme = "
                "'tokens' if all are plain"
            )
        if unseen := sorted(set(file.text.types) - set(train.text.types)):
            _say(f"{file.text.path}: has {', '.join(unseen)}, which the training file lacks: they count as missed")
    test = tests[0] if tests else None
    return TaggingProblem(train, dev, test, encoder, config.feature_layers, config.feature_mix)


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"finetuning: tagging: {line}", flush=True)
