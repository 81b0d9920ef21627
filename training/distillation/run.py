"""The distillation run: a shallow student trained beside its frozen teacher, and what that bought and cost."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest, record_of, write_manifest
from pipelines.contract.schemas import Split
from pipelines.contract.workspace import (
    CHECKPOINTS_DIRECTORY,
    DISTILLATION,
    ENCODER_DIRECTORY,
    EXAMPLES,
    VOCABULARY,
    VOCABULARY_NAME,
    code_version,
    length_directory,
)
from pipelines.results.marks import building_directory
from training.bert.attention import flash_attention_applies
from training.bert.heads import BertForPreTraining
from training.bert.huggingface import huggingface_config, load_into, write_model
from training.bert.losses import MLM_DENOMINATOR_EPS
from training.bert.modeling import parameter_count
from training.data.arrow_examples import ArrowExamples
from training.data.batches import MicroBatch, StepBatch
from training.data.dynamic_masking import DynamicMasking, masking_of
from training.data.ordering import GlobalOrder, keyed_seed
from training.data.step_reader import StepReader, heldout_batches
from training.distillation.report import ProgressLine, Size, in_words, masked_lm_scores, tokens_per_second
from training.distillation.student import LearntSums, Student, chosen_layers, lesson_of, read_teacher, student_weights
from training.engine.optimizer import build_optimizer
from training.engine.precision import TORCH_TYPES, resolved_precision, seed_dropout
from training.engine.processes import Processes
from training.engine.schedule import learning_rate_at
from training.engine.training_engine import EngineSettings, TrainingEngine
from training.pretraining.run import EXIT_INTERRUPTED
from training.resuming.checkpoint_writer import CheckpointWriter
from training.resuming.checkpointed_stage import begin, complete, lock_of_ranks, on_first
from training.resuming.checkpoints import CheckpointStore, Retention
from training.resuming.process_end import StopRequest
from training.resuming.progress import Progress
from training.resuming.result_checks import require_finite
from training.stages.distillation import DistillationInputs, verify_inputs
from training.tokenizing.checks import require_same_tokenizer
from training.tracking.tracker import Tracker

_KEPT_CHECKPOINTS = 2
_SPEED_EXAMPLES = 64


class DistillationRun:
    """One run of one process; all ranks do the same, rank 0 also speaks and writes."""

    def __init__(self, inputs: DistillationInputs, processes: Processes, stop: StopRequest) -> None:
        self._inputs, self._config, self._processes, self._stop = inputs, inputs.config, processes, stop
        self._precision = resolved_precision(self._config.precision, processes.device)
        self._is_masked_only = self._config.soft_targets == "masked"
        self._teacher, self._teacher_model, self._vocab_size = read_teacher(inputs.teacher_directory)
        depth = self._teacher_model.num_hidden_layers
        if self._config.max_seq_length > self._teacher_model.max_position_embeddings:
            raise InputError(
                f"{inputs.recipe.path}: distillation.max_seq_length = {self._config.max_seq_length} exceeds the "
                f"teacher's {self._teacher_model.max_position_embeddings} positions; lower it"
            )
        self._layers = chosen_layers(self._config.teacher_layers, depth, inputs.teacher_directory)
        self._model = self._teacher_model.model_copy(update={"num_hidden_layers": len(self._layers)})
        self._student = BertForPreTraining(self._model, self._vocab_size, next_sentence=False)
        source = inputs.teacher_directory
        load_into(self._student, student_weights(self._teacher.state_dict(), self._layers), source)
        dtype = TORCH_TYPES[self._precision]
        self._teacher.to(processes.device, dtype)
        self._with_plan = not flash_attention_applies(
            processes.device.type, dtype, self._model.attention_probs_dropout_prob
        )
        self._examples = self._read_examples("train")
        self._num_steps = max(
            1, math.ceil(self._config.num_train_epochs * self._examples.num_rows / self._config.global_batch_size)
        )
        self._directory = building_directory(inputs.directory)
        self._checkpoints = CheckpointStore(
            storage.join(self._directory, CHECKPOINTS_DIRECTORY),
            inputs.key,
            Retention(_KEPT_CHECKPOINTS),
            processes,
            CheckpointWriter(processes.rank, processes.world_size, in_background=True),
            self._say,
        )

    def _say(self, line: str) -> None:
        if self._processes.is_first:
            print(f"distillation: {line}", flush=True)

    def run(self, restart: str | None) -> int:
        """Train to the end, or until asked to stop.

        Returns:
            0, or EXIT_INTERRUPTED after a checkpoint.
        """
        inputs, processes = self._inputs, self._processes
        with lock_of_ranks(processes, inputs.workspace, DISTILLATION, reads=(EXAMPLES, VOCABULARY)):
            self._share()
            on_first(processes, lambda: _require_usable(inputs))
            if not on_first(processes, lambda: begin(inputs.key, inputs.directory, restart, self._say)):
                return 0
            return self._run()

    def _run(self) -> int:
        found = self._checkpoints.newest()
        engine = self._build_engine()
        progress = Progress(world_size=self._processes.world_size)
        if found is not None:
            name, progress = found
            self._checkpoints.load(engine, name, progress.world_size)
            progress = replace(progress, world_size=self._processes.world_size)
            self._say(f"resumed from checkpoint {name}")
        with Tracker(self._directory, self._processes.is_first, "distillation.", progress.step or -1) as tracker:
            if not progress.step:
                teacher, before = self._heldout(self._teacher), self._heldout(self._student)
                self._tell("teacher", teacher)
                self._tell("student before training", before)
                progress = replace(progress, statistics={"teacher": teacher, "before": before})
            progress, is_complete = self._train(engine, progress, tracker)
            self._checkpoints.wait()
            if is_complete:
                after = self._heldout(self._student)
                self._tell("student", after)
                tracker.log(progress.step, {f"heldout_{name}": value for name, value in after.items()})
                state = engine.full_precision_state()
        if is_complete:
            # The metrics are closed: what is complete changes its place.
            on_first(self._processes, lambda: self._export(state, progress, after))
        engine.close()
        return 0 if is_complete else EXIT_INTERRUPTED

    def _read_examples(self, split: Split) -> ArrowExamples:
        inputs = self._inputs
        return ArrowExamples(inputs.examples_directory, inputs.examples, split, self._config.max_seq_length)

    def _masking(self, examples: ArrowExamples) -> DynamicMasking | None:
        vocabulary_uri = storage.join(self._inputs.teacher_directory, VOCABULARY_NAME)
        tokens = storage.read_bytes(vocabulary_uri).decode().split("\n")[:-1]
        return masking_of(examples.metadata, tokens, always=self._config.masking == "dynamic")

    def _share(self) -> tuple[int, int]:
        """Sequences of the largest micro-batch of a rank, and how many micro-batches a step has."""
        config, world_size = self._config, self._processes.world_size
        own = math.ceil(config.global_batch_size / world_size)
        micro_batches = math.ceil(own / (config.micro_batch_size or own))
        if config.global_batch_size < world_size * micro_batches:
            raise InputError(
                f"{self._inputs.recipe.path}: distillation.global_batch_size = {config.global_batch_size} is too "
                f"small for {world_size} ranks with {micro_batches} micro-batches each; raise it, or use fewer ranks"
            )
        return math.ceil(own / micro_batches), micro_batches

    def _build_engine(self) -> TrainingEngine:
        micro_batch_size, micro_batches = self._share()
        # As in training/finetuning/loop.py: with 16 bits a ZeRO stage keeps the fp32 master weights.
        zero_stage = 0 if self._precision == "fp32" else 2
        settings = EngineSettings(
            zero_stage, self._precision, self._config.max_grad_norm, micro_batch_size, micro_batches
        )
        self._say(
            f"student of {len(self._layers)} layers ({parameter_count(self._student):,} parameters) from the teacher's "
            f"{', '.join(map(str, self._layers))} of {self._teacher_model.num_hidden_layers}; {self._num_steps} steps, "
            f"{self._processes.world_size} ranks on {self._processes.device.type}, {self._precision}"
        )
        student = Student(self._student, self._config.temperature, self._is_masked_only)
        return TrainingEngine(student, build_optimizer(student, self._config), settings, self._processes)

    def _train(self, engine: TrainingEngine, progress: Progress, tracker: Tracker) -> tuple[Progress, bool]:
        """Go through the steps that are left; is the last one done?"""
        config, processes = self._config, self._processes
        order = GlobalOrder(self._examples.num_rows, config.seed, "distillation")
        reader = StepReader(
            self._examples,
            order,
            config.global_batch_size,
            self._share()[1],
            processes.rank,
            processes.world_size,
            processes.device,
            self._with_plan,
            masking=self._masking(self._examples),
        )
        line = ProgressLine(self._num_steps, config.log_every_steps)
        engine.train()
        batches = reader.steps(progress.position, self._num_steps - progress.step)
        with contextlib.closing(batches):
            for batch in batches:
                sums, stop = self._step(engine, batch, progress.step)
                progress = replace(
                    progress,
                    step=progress.step + 1,
                    position=batch.next_position,
                    tokens=progress.tokens + batch.global_tokens,
                    sequences=progress.sequences + batch.global_sequences,
                )
                self._processes.reached(progress.step)
                if metrics := line.add(progress.step, self._metrics(sums, batch), batch.global_tokens):
                    tracker.log(progress.step, metrics)
                    self._say(line.in_words(progress.step, metrics))
                is_last = progress.step == self._num_steps
                if stop or is_last or progress.step % config.checkpoint_every_steps == 0:
                    self._checkpoints.save(engine, progress)
                if stop and not is_last:
                    self._say(f"stopped by a signal after step {progress.step}; run again to go on from there")
                    return progress, False
        return progress, True

    def _step(self, engine: TrainingEngine, batch: StepBatch, step: int) -> tuple[torch.Tensor, bool]:
        """One optimizer step: sums [4] of LearntSums over all ranks, and whether a rank shall stop."""
        config, processes = self._config, self._processes
        sums = torch.zeros(6, dtype=torch.float64, device=processes.device)
        for index, own in enumerate(batch.micro_batches):
            micro_batch = own.to(processes.device)
            seed_dropout(keyed_seed(config.seed, "dropout", step, processes.rank, index))
            lesson = lesson_of(self._teacher, micro_batch, self._is_masked_only)
            learnt: LearntSums = engine(
                micro_batch.sequences, micro_batch.masked_lm_positions_M, micro_batch.masked_lm_ids_M, lesson
            )
            engine.backward(self._loss(learnt, batch), is_last=index == len(batch.micro_batches) - 1)
            sums[:4] += torch.stack([value.detach().double() for value in learnt])
        num_warmup_steps = int(self._num_steps * config.warmup_proportion)
        engine.step(learning_rate_at(step, config.learning_rate, num_warmup_steps, self._num_steps))
        sums[4], sums[5] = float(self._stop.received), float(engine.was_updated)
        processes.sum(sums)
        if not sums[5] and self._precision != "fp16":
            raise InputError(
                f"{self._inputs.recipe.path}: step {step + 1}: loss or gradient is not finite; lower "
                f"distillation.learning_rate = {config.learning_rate:g}, or check the teacher's weights"
            )
        return sums[:4].cpu(), bool(sums[4] > 0)

    def _num_terms(self, batch: StepBatch) -> tuple[float, float, float]:
        """Terms of the three losses in the whole global batch."""
        soft_targets = batch.global_masked_tokens if self._is_masked_only else batch.global_tokens
        return soft_targets, batch.global_masked_tokens + MLM_DENOMINATOR_EPS, batch.global_tokens

    def _loss(self, learnt: LearntSums, batch: StepBatch) -> torch.Tensor:
        """This micro-batch's part of the weighted sum of the three mean losses."""
        config = self._config
        soft_targets, masked, tokens = self._num_terms(batch)
        return (
            config.soft_target_weight / soft_targets * learnt.soft_target_loss_sum
            + config.mlm_weight / masked * learnt.mlm_loss_sum
            + config.cosine_weight / tokens * learnt.cosine_loss_sum
        )

    def _metrics(self, sums: torch.Tensor, batch: StepBatch) -> dict[str, float]:
        soft_targets, masked, tokens = self._num_terms(batch)
        config = self._config
        metrics = {
            "soft_target_loss": float(sums[0]) / soft_targets,
            "mlm_loss": float(sums[1]) / masked,
            "cosine_loss": float(sums[2]) / tokens,
            "mlm_accuracy": float(sums[3]) / masked,
        }
        metrics["loss"] = (
            config.soft_target_weight * metrics["soft_target_loss"]
            + config.mlm_weight * metrics["mlm_loss"]
            + config.cosine_weight * metrics["cosine_loss"]
        )
        return metrics

    def _heldout_batches(self, max_examples: int, rank: int, world_size: int) -> Iterator[MicroBatch]:
        examples = self._read_examples("heldout")
        return heldout_batches(
            examples,
            max_examples,
            self._share()[0],
            rank,
            world_size,
            self._processes.device,
            self._with_plan,
            self._masking(examples),
        )

    def _heldout(self, model: BertForPreTraining) -> dict[str, float]:
        """Masked-LM scores on held-out rows, shared among the ranks; empty where there are none."""
        files = self._inputs.examples.files_of("heldout", length_directory(self._config.max_seq_length))
        if not sum(file.rows for file in files):
            return {}
        processes = self._processes
        batches = self._heldout_batches(self._config.eval_examples, processes.rank, processes.world_size)
        return masked_lm_scores(model, batches, processes)

    def _tell(self, who: str, scores: Mapping[str, float]) -> None:
        if scores:
            self._say(
                f"held-out, {who}: MLM loss {scores['mlm_loss']:.4f}, accuracy {scores['mlm_accuracy']:.4f}, "
                f"perplexity {scores['mlm_perplexity']:.1f}"
            )
        else:
            self._say(f"no held-out examples of length {self._config.max_seq_length}, so {who} has no score")

    def _export(self, state: dict[str, torch.Tensor], progress: Progress, after: dict[str, float]) -> None:
        inputs, directory = self._inputs, self._directory
        require_finite(state, after, inputs.recipe.path)
        names = write_model(
            storage.join(directory, ENCODER_DIRECTORY),
            state,
            huggingface_config(self._model, self._vocab_size, self._student.architecture),
            inputs.teacher_directory,
        )
        records = [record_of(directory, f"{ENCODER_DIRECTORY}/{name}", 0) for name in names]
        speeds = self._speeds()
        sizes = {
            "teacher": Size.of(self._teacher, inputs.teacher_directory),
            "student": Size.of(self._student, storage.join(directory, ENCODER_DIRECTORY)),
        }
        statistics = {
            "teacher_layers": list(self._layers),
            **{
                who: {**vars(size), "tokens_per_second": speeds.get(who), "heldout": scores}
                for (who, size), scores in zip(sizes.items(), (progress.statistics["teacher"], after), strict=True)
            },
            "heldout_before": progress.statistics["before"],
            "steps": progress.step,
            "tokens": progress.tokens,
            "sequences": progress.sequences,
            "world_size": progress.world_size,
        }
        write_manifest(directory, inputs.key.manifest(records, statistics, code_version()))
        complete(inputs.key, inputs.directory, self._say)
        self._say(f"complete: {in_words(sizes, speeds)}")

    def _speeds(self) -> dict[str, float]:
        """Tokens a second of both encoders on training rows, without gradients."""
        rows = min(_SPEED_EXAMPLES, self._examples.num_rows)
        batches = heldout_batches(
            self._examples, rows, rows, 0, 1, self._processes.device, self._with_plan, self._masking(self._examples)
        )
        (batch,) = batches
        models = {"teacher": self._teacher.bert, "student": self._student.bert}
        return tokens_per_second(models, batch.to(self._processes.device).sequences)


def _require_usable(inputs: DistillationInputs) -> None:
    """Check what the run will read before it writes anything.

    Raises:
        InputError: a file is missing or damaged, or the teacher's tokenizer gives other ids than the examples hold.
    """
    verify_inputs(inputs)
    vocabulary = storage.join(inputs.workspace, VOCABULARY)
    if read_manifest(vocabulary) is not None:
        require_same_tokenizer(inputs.teacher_directory, vocabulary, inputs.examples_directory)
