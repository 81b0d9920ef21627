"""A task of GLUE as a problem of the fine-tuning loop: a classifier of texts, the task's rows and score."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.contract import storage
from pipelines.statistics.training import FamilyStatistics
from training.bert.packing import PackedSequences
from training.data.ordering import IntArray
from training.finetuning.classifier import NEW_PARTS, BertForSequenceClassification
from training.finetuning.metrics import Values
from training.finetuning.problem import Forward, TaskInputs
from training.finetuning.text import EncodedText, TextEncoder
from training.glue.metrics import constant_baseline, majority_baseline, scores
from training.glue.reading import LabelledText, read_examples, read_test
from training.glue.submission import write_predictions
from training.settings.finetuning import ClassifierHead
from training.settings.glue import TASKS, Task, task_files
from training.settings.model import ModelConfig


class GlueProblem:
    """One task with its files, read and tokenized."""

    head_prefixes = NEW_PARTS

    def __init__(
        self,
        task: Task,
        glue_dir: str,
        encoder: TextEncoder,
        max_seq_length: int,
        classifier_head: ClassifierHead = "pooler",
    ) -> None:
        """Read the task's training and development files.

        Raises:
            InputError: a file is missing or has a bad row.
        """
        self.task, self.metric = task, task.metric
        self._glue_dir, self._encoder, self._max_seq_length = glue_dir, encoder, max_seq_length
        self._classifier_head = classifier_head
        train, *dev = (read_examples(task, path) for path in task_files(task.name, glue_dir))
        self.train_text, self._train_labels = self._encoded(train), _labels_of(train)
        self._dev = [(self._encoded(examples), _labels_of(examples)) for examples in dev]
        sentences = (each for one in (train, *dev) for each in (one.sentences_a, one.sentences_b or []))
        self.coverage = encoder.coverage(chain.from_iterable(sentences))

    def build_model(self, model: ModelConfig, vocab_size: int) -> nn.Module:
        return BertForSequenceClassification(model, vocab_size, self.task.num_labels, self._classifier_head)

    def loss_sum(self, output: torch.Tensor, rows: IntArray, _packed: PackedSequences, /) -> torch.Tensor:
        labels_B = torch.from_numpy(self._train_labels[rows]).to(output.device)
        mean = BertForSequenceClassification.loss(output, labels_B if self.task.is_regression else labels_B.long())
        return mean * len(rows)

    def num_loss_terms(self, rows: IntArray) -> int:
        return len(rows)

    def evaluate(self, forward: Forward) -> dict[str, float]:
        return self._score(forward, *self._dev[0])

    def finish(self, forward: Forward, directory: str) -> FamilyStatistics:
        statistics = FamilyStatistics(
            majority_baseline=majority_baseline(self.task, self._train_labels, self._dev[0][1]),
            constant_baseline=constant_baseline(self.task, self._dev[0][1]),
            train_rows=len(self._train_labels),
            dev_rows=len(self._dev[0][1]),
        )
        if len(self._dev) > 1:
            statistics = statistics.model_copy(update={"mismatched": self._score(forward, *self._dev[1])})
        self._predict_tests(forward, directory)
        return statistics

    def huggingface(self) -> tuple[str, dict[str, Any]]:
        return BertForSequenceClassification.architecture(self._classifier_head), described_task(self.task)

    def _encoded(self, examples: LabelledText) -> EncodedText:
        return self._encoder.encode(examples.sentences_a, examples.sentences_b, self._max_seq_length)

    def _score(self, forward: Forward, text: EncodedText, labels: Values) -> dict[str, float]:
        return scores(self.task, labels, self._predictions(forward, text))

    def _predictions(self, forward: Forward, text: EncodedText) -> Values:
        predictions = np.empty(len(text.lengths), dtype=np.float64)
        for rows, _, logits_BC in forward(text):
            answers = logits_BC.squeeze(1) if self.task.is_regression else logits_BC.argmax(1)
            predictions[rows] = answers.double().numpy()
        return predictions

    def _predict_tests(self, forward: Forward, directory: str) -> None:
        """Write predictions for the existing test files; MNLI's model also predicts the diagnostic set AX."""
        for task in (self.task, *(other for other in TASKS.values() if other.predicted_by == self.task.name)):
            for name, file in task.submission_files.items():
                path = storage.join(self._glue_dir, task.folder, file)
                if storage.file_size_bytes(path) is None:
                    continue
                predictions = self._predictions(forward, self._encoded(read_test(task, path)))
                write_predictions(storage.join(directory, f"{name}.tsv"), task, predictions)


def open_glue(inputs: TaskInputs) -> GlueProblem:
    """Read and tokenize a task's files.

    Raises:
        InputError: a file is missing or has a bad row.
    """
    assert inputs.folder is not None
    encoder = TextEncoder(inputs.vocabulary_directory)
    config = inputs.config
    return GlueProblem(TASKS[inputs.task], inputs.folder, encoder, config.max_seq_length, config.classifier_head)


def described_task(task: Task) -> dict[str, Any]:
    """Keys of config.json for a task, so that consumers see its label names."""
    labels = task.label_names
    return {
        "finetuning_task": task.name,
        "problem_type": "regression" if task.is_regression else "single_label_classification",
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _labels_of(examples: LabelledText) -> Values:
    return np.array(examples.labels, dtype=np.float64)
