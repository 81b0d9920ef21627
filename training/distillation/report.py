"""What a distillation is judged by: sizes, speeds and masked-LM scores of teacher and student, and a progress line."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pipelines.contract import storage
from training.bert.heads import BertForPreTraining, PreTrainingOutput
from training.bert.modeling import BertModel
from training.bert.packing import PackedSequences
from training.data.batches import MicroBatch
from training.engine.processes import Processes
from training.pretraining.evaluation import metrics_from_sums

SPEED_ROUNDS = 9


@dataclass(frozen=True)
class Size:
    """parameters: of encoder and masked-LM head. bytes: of the weights' files in its directory."""

    num_hidden_layers: int
    parameters: int
    bytes: int

    @staticmethod
    def of(model: BertForPreTraining, directory: str) -> Size:
        names = [name for name in storage.list_files(directory) if name.endswith((".safetensors", ".bin"))]
        sizes = [storage.file_size_bytes(storage.join(directory, name)) or 0 for name in names]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return Size(len(model.bert.encoder.layer), parameters, sum(sizes))


def masked_lm_scores(
    model: BertForPreTraining, batches: Iterable[MicroBatch], processes: Processes
) -> dict[str, float]:
    """mlm_loss, mlm_accuracy and mlm_perplexity over the batches of all ranks; every rank gets the same result."""
    sums = torch.zeros(6, dtype=torch.float64, device=processes.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in batches:
            own = batch.to(processes.device)
            output: PreTrainingOutput = model(
                own.sequences, own.masked_lm_positions_M, own.masked_lm_ids_M, own.next_sentence_label_B
            )
            sums[0] += output.mlm_loss_sum
            sums[1] += output.mlm_correct
            sums[2] += len(own.masked_lm_ids_M)
    model.train(was_training)
    metrics = metrics_from_sums(processes.sum(sums))
    return {name: value for name, value in metrics.items() if name.startswith("mlm_")}


def tokens_per_second(models: Mapping[str, BertModel], sequences: PackedSequences) -> dict[str, float]:
    """Speed of encoders on one batch, without gradients: the median of several rounds in which they take turns.

    Turns, so that whatever else the machine does meets all of them; the first round is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for _ in range(SPEED_ROUNDS + 1):
            for name, model in models.items():
                seconds[name].append(_seconds_of(model.eval(), sequences))
    return {name: sequences.num_tokens / statistics.median(values[1:]) for name, values in seconds.items()}


def _seconds_of(model: nn.Module, sequences: PackedSequences) -> float:
    started = time.perf_counter()
    model(sequences)
    if sequences.input_ids_T.is_cuda:
        torch.cuda.synchronize(sequences.input_ids_T.device)
    return time.perf_counter() - started


def in_words(sizes: Mapping[str, Size], speeds: Mapping[str, float]) -> str:
    """Sizes and speeds of student and teacher in a line."""
    student, teacher = sizes["student"], sizes["teacher"]
    return (
        f"{student.num_hidden_layers} of {teacher.num_hidden_layers} layers, {student.parameters:,} of "
        f"{teacher.parameters:,} parameters ({student.parameters / teacher.parameters:.0%}), "
        f"{student.bytes / 1e6:.1f} of {teacher.bytes / 1e6:.1f} MB; encoder {speeds['student']:,.0f} tokens/s against "
        f"{speeds['teacher']:,.0f} ({speeds['student'] / speeds['teacher']:.2f} times as fast)"
    )


class ProgressLine:
    """Means of the steps' metrics between two lines, and the speed."""

    def __init__(self, num_steps: int, every_steps: int) -> None:
        self._num_steps, self._every_steps = num_steps, every_steps
        self._restart()

    def _restart(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps, self._tokens, self._clock = 0, 0, time.monotonic()

    def add(self, step: int, metrics: Mapping[str, float], tokens: int) -> dict[str, float]:
        """Count a step in; the means where a line is due, else nothing."""
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in metrics.items()}
        self._steps, self._tokens = self._steps + 1, self._tokens + tokens
        if step % self._every_steps and step != self._num_steps:
            return {}
        seconds = max(time.monotonic() - self._clock, 1e-9)
        means = {name: value / self._steps for name, value in self._sums.items()}
        means |= {"tokens_per_second": self._tokens / seconds}
        self._left_seconds = (self._num_steps - step) * seconds / self._steps
        self._restart()
        return means

    def in_words(self, step: int, means: Mapping[str, float]) -> str:
        """The line for what `add` has just returned."""
        return (
            f"step {step}/{self._num_steps}: loss {means['loss']:.4f} (soft targets {means['soft_target_loss']:.4f}, "
            f"MLM {means['mlm_loss']:.4f}, cosine {means['cosine_loss']:.4f}), MLM accuracy "
            f"{means['mlm_accuracy']:.4f}, {means['tokens_per_second']:,.0f} tokens/s, {self._left_seconds:.0f} s left"
        )
