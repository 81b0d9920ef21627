"""Sizes and speeds of teacher and student."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pipelines.contract import storage
from training.bert.heads import BertForPreTraining
from training.bert.modeling import BertModel
from training.bert.packing import PackedSequences

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


def tokens_per_second(models: Mapping[str, BertModel], sequences: PackedSequences) -> dict[str, float]:
    """Speed of encoders on one batch, without gradients: the median of several interleaved rounds.

    Interleaved, so that other load on the machine affects all of them; the first round is discarded.
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
