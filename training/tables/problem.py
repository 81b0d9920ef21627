"""A table with the user's own labels as a problem of the fine-tuning loop: a classifier of texts."""

from __future__ import annotations

import json
import os
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipelines.contract import storage
from pipelines.statistics.training import FamilyStatistics
from training.bert.model_readme import MULTI_LABEL
from training.bert.packing import PackedSequences
from training.data.ordering import IntArray
from training.finetuning.classifier import NEW_PARTS, BertForSequenceClassification
from training.finetuning.problem import Forward, TaskInputs
from training.finetuning.text import EncodedText, TextEncoder
from training.settings.finetuning import ClassifierHead
from training.settings.model import ModelConfig
from training.settings.tables import TableConfig
from training.tables.labels import label_weights
from training.tables.predictions import Outputs, answers_of, prediction_lines
from training.tables.reading import LabelledRows, Splits, read_splits
from training.tables.scores import constant_baseline, majority_baseline, scores, scores_by_label

BY_LABEL_NAME = "dev_by_label.json"

PROBLEM_TYPES = {
    "single": "single_label_classification",
    "multi": MULTI_LABEL,
    "regression": "regression",
}
"""`problem_type` of config.json by the kind of a table."""


class TableProblem:
    """One table, read and tokenized."""

    head_prefixes = NEW_PARTS

    def __init__(
        self,
        table: TableConfig,
        splits: Splits,
        encoder: TextEncoder,
        max_seq_length: int,
        classifier_head: ClassifierHead = "pooler",
    ) -> None:
        """Tokenize the rows.

        Args:
            table: the settings.
            splits: the rows, from `read_splits`.
            encoder: the tokenizer.
            max_seq_length: longer rows are truncated.
            classifier_head: `finetuning.classifier_head`.
        """
        self.metric, self.names = table.judged_by, splits.names
        self._table, self._splits = table, splits
        self._encoder, self._max_seq_length, self._classifier_head = encoder, max_seq_length, classifier_head
        self.train_text, self._dev_text = self._encoded(splits.train), self._encoded(splits.dev)
        columns = (column for rows in (splits.train, splits.dev) for column in rows.texts)
        self.coverage = encoder.coverage(chain.from_iterable(columns))
        targets, dev_targets = splits.train.targets, splits.dev.targets
        assert targets is not None
        assert dev_targets is not None
        self._targets, self._dev_targets = targets, dev_targets
        weights = label_weights(table, splits.names, targets)
        self._weights_C = None if weights is None else torch.from_numpy(weights).float()

    def build_model(self, model: ModelConfig, vocab_size: int) -> nn.Module:
        return BertForSequenceClassification(model, vocab_size, len(self.names), self._classifier_head)

    def loss_sum(self, output: torch.Tensor, rows: IntArray, _packed: PackedSequences, /) -> torch.Tensor:
        """Loss of rows with logits [B, C]: cross-entropy, squared error, or binary cross-entropy of each label.

        With label weights, divided by `num_loss_terms` it is the mean of torch.nn.CrossEntropyLoss(weight), or of
        torch.nn.BCEWithLogitsLoss(pos_weight=weight) for several labels per row.
        """
        targets = torch.from_numpy(self._targets[rows]).to(output.device)
        weights_C = None if self._weights_C is None else self._weights_C.to(output.device)
        if self._table.kind == "multi":
            return functional.binary_cross_entropy_with_logits(
                output.float(), targets.float(), pos_weight=weights_C, reduction="sum"
            )
        if weights_C is not None:
            return functional.cross_entropy(output.float(), targets.long(), weights_C, reduction="sum")
        labels_B = targets if self._table.kind == "regression" else targets.long()
        return BertForSequenceClassification.loss(output, labels_B) * len(rows)

    def num_loss_terms(self, rows: IntArray) -> float:
        """Rows, or the sum of their weights; for several labels per row, rows times labels."""
        if self._table.kind == "multi":
            return len(rows) * len(self.names)
        if self._weights_C is None:
            return len(rows)
        return float(self._weights_C[torch.from_numpy(self._targets[rows]).long()].sum())

    def evaluate(self, forward: Forward) -> dict[str, float]:
        answers = answers_of(self._table, self._outputs(forward, self._dev_text))
        return scores(self._table, self.names, self._dev_targets, answers)

    def finish(self, forward: Forward, directory: str) -> FamilyStatistics:
        """Write dev.jsonl, scores by label and, with a test file, test.jsonl."""
        table, names, dev = self._table, self.names, self._splits.dev
        outputs = self._outputs(forward, self._dev_text)
        _write(directory, "dev.jsonl", prediction_lines(table, names, dev, outputs))
        if table.kind != "regression":
            by_label = scores_by_label(names, self._dev_targets, answers_of(table, outputs))
            _write(directory, BY_LABEL_NAME, json.dumps(by_label, ensure_ascii=False, indent=1).encode() + b"\n")
        return FamilyStatistics(
            majority_baseline=majority_baseline(table, names, self._targets, self._dev_targets),
            constant_baseline=constant_baseline(table, names, self._dev_targets),
            train_rows=len(self._splits.train),
            dev_rows=len(dev),
            labels=list(names),
            test=self._finish_test(forward, directory),
        )

    def huggingface(self) -> tuple[str, dict[str, Any]]:
        more = {"threshold": self._table.threshold} if self._table.kind == "multi" else {}
        return BertForSequenceClassification.architecture(self._classifier_head), {
            "finetuning_task": self._table.name,
            "problem_type": PROBLEM_TYPES[self._table.kind],
            "id2label": {str(number): name for number, name in enumerate(self.names)},
            "label2id": {name: number for number, name in enumerate(self.names)},
            **more,
        }

    def in_words(self) -> list[str]:
        """Lines on the rows: counts by label, rows without one, and rows that may be truncated."""
        lines = []
        texts = {"training": self.train_text, "development": self._dev_text}
        for (what, text), rows in zip(texts.items(), (self._splits.train, self._splits.dev), strict=True):
            full = int((text.lengths >= self._max_seq_length).sum())
            cut = f"; {full:,} rows have max_seq_length = {self._max_seq_length} tokens or more" if full else ""
            lines.append(f"{rows.columns.path}: {len(rows):,} {what} rows{self._counts(rows)}{cut}")
        return lines

    def _counts(self, rows: LabelledRows) -> str:
        assert rows.targets is not None
        if self._table.kind == "regression":
            return f", {rows.targets.min():g} to {rows.targets.max():g}, mean {rows.targets.mean():.3f}"
        is_multi = self._table.kind == "multi"
        counts = (
            rows.targets.sum(axis=0) if is_multi else np.bincount(rows.targets.astype(int), minlength=len(self.names))
        )
        common = np.argsort(-counts, kind="stable")[:_LABELS_SHOWN]
        listed = ", ".join(f"{self.names[number]!r} {int(counts[number]):,}" for number in common)
        more = f" and {len(counts) - len(common)} more labels" if len(counts) > len(common) else ""
        unlabelled = int((rows.targets.sum(axis=1) == 0).sum()) if is_multi else 0
        return f", {listed}{more}" + (f", {unlabelled:,} rows without a label" if unlabelled else "")

    def _encoded(self, rows: LabelledRows) -> EncodedText:
        first, *second = rows.texts
        return self._encoder.encode(first, second[0] if second else None, self._max_seq_length)

    def _outputs(self, forward: Forward, text: EncodedText) -> Outputs:
        outputs = np.empty((len(text.lengths), len(self.names)), dtype=np.float64)
        for rows, _, logits_BC in forward(text):
            outputs[rows] = logits_BC.double().numpy()
        return outputs

    def _finish_test(self, forward: Forward, directory: str) -> dict[str, float] | None:
        rows = self._splits.test
        if rows is None:
            return None
        outputs = self._outputs(forward, self._encoded(rows))
        _write(directory, "test.jsonl", prediction_lines(self._table, self.names, rows, outputs))
        if rows.targets is None:
            return None
        return scores(self._table, self.names, rows.targets, answers_of(self._table, outputs))


_LABELS_SHOWN = 10


def open_table(inputs: TaskInputs) -> TableProblem:
    """Read and tokenize the files of a table.

    Raises:
        InputError: a file is missing or has a bad row.
    """
    table = inputs.config.family(inputs.task).own_settings(inputs.config, inputs.task)
    assert isinstance(table, TableConfig)
    config, encoder = inputs.config, TextEncoder(inputs.vocabulary_directory)
    problem = TableProblem(table, read_splits(table), encoder, config.max_seq_length, config.classifier_head)
    if os.environ.get("RANK", "0") == "0":
        for line in problem.in_words():
            print(f"finetuning: {table.name}: {line}", flush=True)
    return problem


def _write(directory: str, name: str, data: bytes) -> None:
    storage.write_bytes(storage.join(directory, name), data)
