"""Teacher and student of a distillation: the student's initial layers, and both forward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from pipelines.contract.errors import InputError
from training.bert.config_file import read_config
from training.bert.heads import BertForPreTraining
from training.bert.huggingface import load_into, read_weights
from training.bert.packing import PackedSequences
from training.data.batches import MicroBatch
from training.distillation.losses import cosine_loss, soft_target_loss
from training.settings.model import ModelConfig

_LAYER = "bert.encoder.layer."
_UNTRAINED = ("bert.pooler.", "cls.seq_relationship.")


def every_other(num_hidden_layers: int) -> tuple[int, ...]:
    """Layers 0, 2, 4 ... of a teacher."""
    return tuple(range(0, num_hidden_layers, 2))


def student_weights(teacher: Mapping[str, torch.Tensor], layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """The teacher's weights with only these layers, renumbered from 0; without pooler and next-sentence head."""
    places = {layer: place for place, layer in enumerate(layers)}
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in teacher.items():
        if name.startswith(_UNTRAINED):
            continue
        if name.startswith(_LAYER):
            number, _, rest = name.removeprefix(_LAYER).partition(".")
            if int(number) in places:
                weights[f"{_LAYER}{places[int(number)]}.{rest}"] = tensor
        else:
            weights[name] = tensor
    return weights


@dataclass(frozen=True)
class Lesson:
    """The teacher's output for a batch.

    hidden_TH: its last layer's output. transformed_KH: input of its decoder, at the tokens with soft targets.
    weight_VH, bias_V: that decoder.
    """

    hidden_TH: torch.Tensor
    transformed_KH: torch.Tensor
    weight_VH: torch.Tensor
    bias_V: torch.Tensor


class LearntSums(NamedTuple):
    """Sums over a micro-batch: losses [] float32, and the count of correct predictions [] int64."""

    soft_target_loss_sum: torch.Tensor
    mlm_loss_sum: torch.Tensor
    cosine_loss_sum: torch.Tensor
    mlm_correct: torch.Tensor


class Student(nn.Module):
    """A masked LM whose forward pass compares it with its teacher; parameters are named as in BertForPreTraining.

    Without a lesson it is a plain masked LM, and the sums of the distillation losses are 0.
    """

    def __init__(self, model: BertForPreTraining, temperature: float, is_masked_only: bool) -> None:
        super().__init__()
        self.bert, self.cls = model.bert, model.cls
        self._temperature, self._is_masked_only = temperature, is_masked_only

    def forward(
        self,
        sequences: PackedSequences,
        masked_lm_positions_M: torch.Tensor,
        masked_lm_ids_M: torch.Tensor,
        lesson: Lesson | None = None,
    ) -> LearntSums:
        hidden_TH, _ = self.bert(sequences)
        predictions = self.cls.predictions
        if lesson is None:
            mlm_loss_sum, mlm_correct = predictions(hidden_TH.index_select(0, masked_lm_positions_M), masked_lm_ids_M)
            nothing = torch.zeros_like(mlm_loss_sum)
            return LearntSums(nothing, mlm_loss_sum, nothing, mlm_correct)
        transformed_KH = predictions.transform(
            hidden_TH.index_select(0, masked_lm_positions_M) if self._is_masked_only else hidden_TH
        )
        transformed_MH = (
            transformed_KH if self._is_masked_only else transformed_KH.index_select(0, masked_lm_positions_M)
        )
        mlm_loss_sum, mlm_correct = predictions.decoder(transformed_MH, predictions.bias, masked_lm_ids_M)
        soft_target_loss_sum = soft_target_loss(
            transformed_KH,
            predictions.decoder.weight,
            predictions.bias,
            lesson.transformed_KH,
            lesson.weight_VH,
            lesson.bias_V,
            self._temperature,
        )
        return LearntSums(soft_target_loss_sum, mlm_loss_sum, cosine_loss(hidden_TH, lesson.hidden_TH), mlm_correct)


def lesson_of(teacher: BertForPreTraining, batch: MicroBatch, is_masked_only: bool) -> Lesson:
    """Run the teacher, without gradients."""
    with torch.no_grad():
        hidden_TH, _ = teacher.bert(batch.sequences)
        chosen_KH = hidden_TH.index_select(0, batch.masked_lm_positions_M) if is_masked_only else hidden_TH
        predictions = teacher.cls.predictions
        return Lesson(hidden_TH, predictions.transform(chosen_KH), predictions.decoder.weight, predictions.bias)


def read_teacher(directory: str) -> tuple[BertForPreTraining, ModelConfig, int]:
    """Read a masked LM from a Hugging Face directory, with its architecture and vocabulary size.

    Raises:
        InputError: it is not a BERT, or lacks the masked-LM head.
    """
    model, vocab_size = read_config(directory)
    if model.predicts_next_tokens:
        raise InputError(f"{directory}: is a {model.attention} model; distillation needs a masked LM as teacher")
    teacher = BertForPreTraining.masked_lm(model, vocab_size)
    load_into(teacher, read_weights(directory), directory)
    return teacher.eval().requires_grad_(False), model, vocab_size


def chosen_layers(teacher_layers: tuple[int, ...] | None, depth: int, teacher_directory: str) -> tuple[int, ...]:
    """The teacher's layers that initialize the student.

    Raises:
        InputError: the teacher lacks one, or the student would be as deep as the teacher.
    """
    layers = every_other(depth) if teacher_layers is None else teacher_layers
    if layers[-1] >= depth:
        raise InputError(
            f"distillation.teacher_layers names layer {layers[-1]}, but {teacher_directory} has layers 0 to {depth - 1}"
        )
    if len(layers) == depth:
        raise InputError(
            f"{teacher_directory}: the student would have {len(layers)} layers, as many as its teacher; take a deeper "
            "teacher, or fewer distillation.teacher_layers"
        )
    return layers
