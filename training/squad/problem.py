"""SQuAD as a problem of finetuning/loop.py: training windows, scoring of questions, and prediction files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.contract import storage
from pipelines.statistics.training import FamilyStatistics
from training.bert.packing import IntArray, PackedSequences
from training.finetuning.problem import Forward, TaskInputs
from training.settings.model import ModelConfig
from training.settings.squad import SquadConfig, data_files
from training.squad.answers import Logits, QuestionAnswers, WindowLogits, answer_question
from training.squad.heads import BertForQuestionAnswering, span_loss_sum
from training.squad.reading import SquadFile, read_squad
from training.squad.scoring import best_threshold, mean_scores
from training.squad.windows import SquadEncoder, make_targets, make_windows

PREDICTIONS_NAME, N_BEST_NAME, NULL_ODDS_NAME = "predictions.json", "nbest_predictions.json", "null_odds.json"


def open_task(inputs: TaskInputs) -> SquadProblem:
    """`open_squad` with the settings of a recipe."""
    return open_squad(inputs.config.squad, inputs.vocabulary_directory)


def open_squad(config: SquadConfig, encoder_directory: str) -> SquadProblem:
    """Read both files and split them into windows.

    Raises:
        InputError: a file is missing or invalid, or the directory has no vocabulary.
    """
    train, dev = (read_squad(path) for path in data_files(config).values())
    problem = SquadProblem(config, train, dev, SquadEncoder(encoder_directory))
    if os.environ.get("RANK", "0") == "0":
        print(f"finetuning: squad: {problem.in_words()}", flush=True)
    return problem


class SquadProblem:
    """Predicts the tokens that start and end the answer.

    If the development file is 2.0, a question may also get no answer, by a threshold on the odds of no answer.
    """

    metric = "f1"
    head_prefixes: tuple[str, ...] = ("qa_outputs.",)

    def __init__(self, config: SquadConfig, train: SquadFile, dev: SquadFile, encoder: SquadEncoder) -> None:
        self._config, self._train, self._dev = config, train, dev
        windows = make_windows(train, encoder, config)
        self.train_text = windows.text
        self._targets = make_targets(train, windows)
        self._dev_windows = make_windows(dev, encoder, config)
        self.coverage = encoder.coverage(
            text for file in (train, dev) for text in (*file.contexts, *(each.text for each in file.questions))
        )

    def in_words(self) -> str:
        """Counts of questions and windows, in one line."""
        counts = self._counts()
        return (
            f"version {counts.version}, training {counts.train_questions} questions in {counts.train_windows} "
            f"windows ({counts.train_answers_inside_tokens} answers end inside a token), development "
            f"{counts.dev_questions} in {counts.dev_windows}"
        )

    def _counts(self) -> FamilyStatistics:
        return FamilyStatistics(
            version="2.0" if self._dev.is_version_2 else "1.1",
            train_questions=len(self._train.questions),
            train_windows=len(self.train_text.lengths),
            train_answers_inside_tokens=self._targets.inexact,
            dev_questions=len(self._dev.questions),
            # Always predicting no answer is right for every impossible question.
            constant_baseline=sum(each.is_impossible for each in self._dev.questions) / len(self._dev.questions),
            dev_windows=len(self._dev_windows.text.lengths),
        )

    def build_model(self, model: ModelConfig, vocab_size: int) -> nn.Module:
        return BertForQuestionAnswering(model, vocab_size)

    def loss_sum(self, output: torch.Tensor, rows: IntArray, packed: PackedSequences) -> torch.Tensor:
        starts_B, ends_B = (
            torch.from_numpy(targets[rows]).to(output.device) for targets in (self._targets.starts, self._targets.ends)
        )
        return span_loss_sum(output, starts_B, ends_B, packed)

    def num_loss_terms(self, rows: IntArray) -> int:
        return len(rows)

    def evaluate(self, forward: Forward) -> dict[str, float]:
        """Exact match and F1, from 0 to 1; for 2.0 also by kind of question, and the threshold used."""
        return self._scored(self._answers(forward))[0]

    def finish(self, forward: Forward, directory: str) -> FamilyStatistics:
        """Write the files of run_squad.py: predictions, n-best per question, and for 2.0 the odds of no answer."""
        answers = self._answers(forward)
        metrics, predictions = self._scored(answers)
        is_version_2 = self._dev.is_version_2
        n_best = {
            identifier: answer.n_best(self._config.n_best_size, is_version_2) for identifier, answer in answers.items()
        }
        _write(directory, PREDICTIONS_NAME, predictions)
        _write(directory, N_BEST_NAME, n_best)
        if is_version_2:
            _write(directory, NULL_ODDS_NAME, {identifier: answer.null_odds for identifier, answer in answers.items()})
        return self._counts().model_copy(update=metrics)

    def huggingface(self) -> tuple[str, dict[str, Any]]:
        return "BertForQuestionAnswering", {"finetuning_task": "squad"}

    def _answers(self, forward: Forward) -> dict[str, QuestionAnswers]:
        """Answers by question id, in the file's order."""
        windows, config = self._dev_windows, self._config
        logits: list[Logits | None] = [None] * len(windows.text.lengths)
        for rows, packed, output in forward(windows.text):
            pieces = np.split(output.numpy(), packed.cu_seqlens[1:-1].cpu().numpy())
            for row, piece in zip(rows.tolist(), pieces, strict=True):
                logits[row] = piece
        answers = {}
        for number, question in enumerate(self._dev.questions):
            seen = []
            for row in range(windows.rows_of[number], windows.rows_of[number + 1]):
                row_logits = logits[row]
                assert row_logits is not None, row
                seen.append(
                    WindowLogits(
                        row_logits,
                        int(windows.text.segment_b_starts[row]),
                        int(windows.first_tokens[row]),
                        windows.belongs[row],
                    )
                )
            tokens = windows.contexts[question.context]
            answers[question.id] = answer_question(tokens, seen, config.n_best_size, config.max_answer_length)
        return answers

    def _scored(self, answers: Mapping[str, QuestionAnswers]) -> tuple[dict[str, float], dict[str, str]]:
        """Scores and, by question id, the predictions that were scored."""
        questions = self._dev.questions
        threshold = None
        if self._dev.is_version_2:
            threshold = self._config.null_threshold
            if threshold is None:
                texts = {identifier: answer.prediction(None) for identifier, answer in answers.items()}
                odds = {identifier: answer.null_odds for identifier, answer in answers.items()}
                threshold, _ = best_threshold(questions, texts, odds)
        predictions = {identifier: answer.prediction(threshold) for identifier, answer in answers.items()}
        metrics = mean_scores(questions, predictions)
        return (metrics if threshold is None else {**metrics, "null_threshold": threshold}), predictions


def _write(directory: str, name: str, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, ensure_ascii=False, indent=1)
    storage.write_bytes(storage.join(directory, name), text.encode() + b"\n")
