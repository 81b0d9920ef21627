"""The objective of distillation: a shallow student trained against its frozen teacher, and their comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from pipelines.contract.workspace import VOCABULARY, length_directory
from pipelines.results.verification import Verification
from pipelines.statistics.metrics import MASKED_LM_METRICS, MLM_LOSS, Metric
from training.alarms.rules import Alarms
from training.bert.heads import BertForPreTraining, PreTrainingOutput
from training.bert.huggingface import huggingface_config, load_into, write_model
from training.bert.modeling import checkpoint_activations, compile_layers, parameter_count
from training.bert.sizes import step_flops
from training.data.batches import MicroBatch, StepBatch
from training.data.step_reader import heldout_batches
from training.distillation.report import Size, in_words, tokens_per_second
from training.distillation.student import LearntSums, Student, chosen_layers, lesson_of, read_teacher, student_weights
from training.engine.precision import TORCH_TYPES, resolved_precision
from training.engine.processes import Processes
from training.kernels.losses import MLM_DENOMINATOR_EPS
from training.pretraining.bert_objective import MASKED_LM_SUMS, masked_lm_means, masked_lm_sums, output_of
from training.pretraining.objective import Forward, Objective, Say, Tally, shown_metric
from training.pretraining.row_feed import RowFeed
from training.resuming.progress import Progress
from training.settings.distillation import DistillationConfig
from training.settings.optimization import LoopConfig
from training.settings.pretraining import PhaseConfig, PretrainingConfig
from training.stages.distillation import DistillationInputs, shard_verification, verify_teacher
from training.tokenizing.checks import require_same_tokenizer

_SUMS = (*MASKED_LM_SUMS, "soft_target_loss", "soft_targets", "cosine_loss", "tokens")
_METRICS = (
    *MASKED_LM_METRICS,
    Metric("soft_target_loss", "soft-target loss", "nats"),
    Metric("cosine_loss", "cosine loss", "number"),
)
_SPEED_EXAMPLES = 64


class DistillationObjective(Objective):
    """DistilBERT's objective: soft targets, masked LM and the direction of the hidden states."""

    def __init__(self, inputs: DistillationInputs, processes: Processes) -> None:
        """Read the teacher.

        Raises:
            InputError: it has too few positions or layers, or is not a BERT with a masked-LM head.
        """
        self.inputs: DistillationInputs = inputs
        self._config, self._processes = inputs.config, processes
        self._teacher, self._teacher_model, self.vocab_size = read_teacher(inputs.teacher_directory)
        precision = resolved_precision(self._config.precision, processes.device)
        self._dtype, self._is_masked_only = TORCH_TYPES[precision], self._config.soft_targets == "masked"
        depth = self._teacher_model.num_hidden_layers
        if self._config.max_seq_length > self._teacher_model.max_position_embeddings:
            raise InputError(
                f"{inputs.recipe.path}: distillation.max_seq_length = {self._config.max_seq_length} exceeds the "
                f"teacher's {self._teacher_model.max_position_embeddings} positions; lower it"
            )
        self._layers = chosen_layers(self._config.teacher_layers, depth, inputs.teacher_directory)
        self.model = self._teacher_model.model_copy(update={"num_hidden_layers": len(self._layers)})
        with torch.device("meta"):
            self._shape = self._new_student()
        self.num_parameters = parameter_count(self._shape)
        # Copy in full precision, before the teacher is converted.
        self._first_weights = student_weights(self._teacher.state_dict(), self._layers)
        self._teacher.to(processes.device, self._dtype)
        rows = sum(
            file.rows for file in inputs.examples.files_of("train", length_directory(self._config.max_seq_length))
        )
        self.settings = loop_settings(self._config, rows, precision)
        self.sums, self.metrics = _SUMS, _METRICS

    def _new_student(self) -> BertForPreTraining:
        return BertForPreTraining.masked_lm(self.model, self.vocab_size)

    def check(self) -> None:
        verify_teacher(self.inputs)
        vocabulary = storage.join(self.inputs.workspace, VOCABULARY)
        if read_manifest(vocabulary) is not None:
            require_same_tokenizer(self.inputs.teacher_directory, vocabulary, self.inputs.examples_directory)

    def shard_verification(self) -> Verification:
        return shard_verification(self.inputs)

    def build(self) -> Student:
        model = self._new_student()
        load_into(model, self._first_weights, self.inputs.teacher_directory)
        checkpoint_activations(model, self.settings.activation_checkpointing)
        if self.settings.compile:
            compile_layers(model)
        return Student(model, self._config.temperature, self._is_masked_only)

    def learn(self, engine: Forward, batch: MicroBatch, step: StepBatch) -> tuple[torch.Tensor, Tally]:
        config, masked = self._config, len(batch.masked_lm_ids_M)
        lesson = lesson_of(self._teacher, batch, self._is_masked_only)
        learnt: LearntSums = engine(batch.sequences, batch.masked_lm_positions_M, batch.masked_lm_ids_M, lesson)
        soft_targets = step.global_masked_tokens if self._is_masked_only else step.global_tokens
        loss = (
            config.soft_target_weight / soft_targets * learnt.soft_target_loss_sum
            + config.mlm_weight / (step.global_masked_tokens + MLM_DENOMINATOR_EPS) * learnt.mlm_loss_sum
            + config.cosine_weight / step.global_tokens * learnt.cosine_loss_sum
        )
        tokens = batch.sequences.num_tokens
        sums = masked_lm_sums(learnt.mlm_loss_sum, learnt.mlm_correct, batch) | {
            "soft_target_loss": learnt.soft_target_loss_sum,
            "soft_targets": masked if self._is_masked_only else tokens,
            "cosine_loss": learnt.cosine_loss_sum,
            "tokens": tokens,
        }
        return loss, Tally.of(self.sums, sums, loss.device)

    def measure(self, engine: Forward, batch: MicroBatch) -> Tally:
        learnt: LearntSums = engine(batch.sequences, batch.masked_lm_positions_M, batch.masked_lm_ids_M)
        return self._masked_lm_tally(learnt, batch)

    def references(self) -> Mapping[str, Callable[[MicroBatch], Tally]]:
        return {"teacher": self._measure_teacher}

    def _measure_teacher(self, batch: MicroBatch) -> Tally:
        return self._masked_lm_tally(output_of(self._teacher, batch), batch)

    def _masked_lm_tally(self, output: LearntSums | PreTrainingOutput, batch: MicroBatch) -> Tally:
        sums = masked_lm_sums(output.mlm_loss_sum, output.mlm_correct, batch)
        return Tally.of(self.sums, sums, output.mlm_loss_sum.device)

    def means(self, tally: Tally) -> dict[str, float]:
        metrics, config = masked_lm_means(tally), self._config
        if tokens := tally["tokens"]:
            metrics["soft_target_loss"] = tally["soft_target_loss"] / tally["soft_targets"]
            metrics["cosine_loss"] = tally["cosine_loss"] / tokens
            metrics["loss"] = (
                config.soft_target_weight * metrics["soft_target_loss"]
                + config.mlm_weight * metrics["mlm_loss"]
                + config.cosine_weight * metrics["cosine_loss"]
            )
        return metrics

    def alarms(self) -> Alarms:
        return Alarms(MLM_LOSS)

    def introduction(self) -> str:
        layers, depth = ", ".join(map(str, self._layers)), self._teacher_model.num_hidden_layers
        steps = self.settings.num_train_steps
        return f"student of {len(self._layers)} layers from the teacher's {layers} of {depth}; {steps} steps"

    def order_stream(self, _phase: int) -> str:
        return "distillation"

    def restored(self, progress: Progress) -> Progress:
        """Checkpoints of releases in which distillation had no phases store only steps."""
        if "before" not in progress.statistics:
            return progress
        statistics = {"teacher": progress.statistics["teacher"], "heldout_before": progress.statistics["before"]}
        is_over = progress.step == self.settings.num_train_steps
        return replace(progress, statistics=statistics, phase=int(is_over), phase_step=0 if is_over else progress.step)

    def flops(self, step: StepBatch) -> float:
        """Operations of the student, and of the teacher's forward pass: a third of those of training it."""
        soft_targets = step.global_masked_tokens if self._is_masked_only else step.global_tokens
        sizes = (self.vocab_size, step.global_tokens, step.global_squared_tokens)
        student = step_flops(self.model, *sizes, soft_targets + step.global_masked_tokens, reads_all_tokens=True)
        return student + step_flops(self._teacher_model, *sizes, soft_targets, reads_all_tokens=True) / 3.0

    def in_words(self, metrics: Mapping[str, float]) -> str:
        shown = (each for each in self.metrics if each.name in metrics)
        return ", ".join(shown_metric(each, metrics[each.name]) for each in shown)

    def export(self, directory: str, state: Mapping[str, torch.Tensor]) -> list[str]:
        config = huggingface_config(self.model, self.vocab_size, self._shape.architecture)
        return write_model(directory, state, config, self.inputs.teacher_directory)

    def statistics(self, directory: str, progress: Progress, after: Mapping[str, float], say: Say) -> dict[str, Any]:
        sizes = {
            "teacher": Size.of(self._teacher, self.inputs.teacher_directory),
            "student": Size.of(self._shape, directory),
        }
        speeds, scores = self._speeds(directory), {"teacher": progress.statistics["teacher"], "student": after}
        say(in_words(sizes, speeds))
        return {
            "teacher_layers": list(self._layers),
            **{
                who: {**vars(size), "tokens_per_second": speeds.get(who), "heldout": scores[who]}
                for who, size in sizes.items()
            },
            "heldout_before": progress.statistics["heldout_before"],
        }

    def _speeds(self, directory: str) -> dict[str, float]:
        """Tokens per second of both encoders on training rows, without gradients."""
        feed = RowFeed(self, self._processes)
        phase = self.settings.phases[0]
        examples = feed.examples("train", phase)
        rows = min(_SPEED_EXAMPLES, examples.num_rows)
        deal = replace(feed.deal(), rank=0, world_size=1)
        (batch,) = heldout_batches(examples, rows, rows, deal, feed.targets(examples, phase))
        student = read_teacher(directory)[0].to(self._processes.device, self._dtype)
        models = {"teacher": self._teacher.bert, "student": student.bert}
        return tokens_per_second(models, batch.to(self._processes.device).sequences)


def loop_settings(config: DistillationConfig, rows: int, precision: str) -> PretrainingConfig:
    """Loop settings of a distillation over `rows` rows.

    With 16 bits a ZeRO stage keeps the fp32 master weights; in fp32 it would only add work.
    """
    num_steps = max(1, math.ceil(config.num_train_epochs * rows / config.global_batch_size))
    phase = PhaseConfig(
        max_seq_length=config.max_seq_length, steps=num_steps, global_batch_size=config.global_batch_size
    )
    return PretrainingConfig(
        # The precision is that of the teacher, which is chosen before a checkpoint is looked for.
        **{name: getattr(config, name) for name in LoopConfig.model_fields} | {"precision": precision},
        phases=(phase,),
        learning_rate=config.learning_rate,
        num_warmup_steps=int(num_steps * config.warmup_proportion),
        schedule=config.schedule,
        zero_stage=0 if precision == "fp32" else 2,
    )


def open_distillation(inputs: DistillationInputs, processes: Processes) -> DistillationObjective:
    """The objective of a distillation."""
    return DistillationObjective(inputs, processes)
