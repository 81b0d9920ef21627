"""The fine-tuning loop: epochs over a problem's rows, evaluation after each, the best epoch kept.

The task is a `Problem`. Tensor suffixes as in
training/bert/modeling.py. Batches are drawn at random, as in the paper, and not by length: packed rows have no
padding that grouping by length could save.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.contract.errors import InputError
from pipelines.statistics.training import FamilyStatistics
from training.bert.huggingface import load_into, read_weights
from training.bert.modeling import initialize_weights
from training.bert.packing import PackedSequences, pack
from training.data.ordering import IntArray, keyed_permutation, keyed_seed
from training.engine.precision import TORCH_TYPES, resolved_precision, seed_dropout
from training.engine.processes import Processes
from training.engine.training_engine import EngineSettings, TrainingEngine
from training.finetuning.problem import Batches, Forward, Problem
from training.finetuning.text import EncodedText
from training.kernels.packed_attention import flash_attention_applies
from training.optimizers.building import build_optimizer
from training.optimizers.schedule import Schedule
from training.resuming.result_checks import result_fault, unusable
from training.settings.model import ModelConfig
from training.settings.optimization import FittingConfig, OptimizerConfig
from training.tracking.tracker import Tracker

EVALUATION_BATCH_TOKENS = 8_192


@dataclass(frozen=True)
class Beginning:
    """Initial weights of a trial: those in `encoder_directory`, or random ones if it is None."""

    model: ModelConfig
    vocab_size: int
    encoder_directory: str | None


@dataclass(frozen=True)
class Fitted:
    """The best epoch: its number from 1, its scores, its weights in fp32, and the result of `Problem.finish`."""

    epoch: int
    metrics: dict[str, float]
    state: dict[str, torch.Tensor]
    more: FamilyStatistics


class Fitting:
    """Trains one problem; created on every rank, with the same result."""

    def __init__(
        self,
        problem: Problem,
        beginning: Beginning,
        fitting: FittingConfig,
        optimizer: OptimizerConfig,
        processes: Processes,
        say: Callable[[str], None],
    ) -> None:
        """Prepare a run.

        Args:
            problem: what to train.
            beginning: the initial weights.
            fitting: the loop's settings.
            optimizer: the optimizer's settings.
            processes: the ranks that share each batch.
            say: prints lines of progress.

        Raises:
            InputError: the rows are longer than the encoder's positions, or there are fewer rows than ranks.
        """
        if fitting.max_seq_length > beginning.model.max_position_embeddings:
            raise InputError(
                f"finetuning: max_seq_length = {fitting.max_seq_length} exceeds the encoder's "
                f"{beginning.model.max_position_embeddings} positions; lower it"
            )
        if fitting.batch_size < processes.world_size:
            raise InputError(
                f"batch_size = {fitting.batch_size} is below the {processes.world_size} ranks that share it; raise it"
            )
        self._problem, self._beginning, self._config = problem, beginning, fitting
        self._optimizer, self._processes, self._say = optimizer, processes, say
        self._precision = resolved_precision(optimizer.precision, processes.device)
        model, dtype = beginning.model, TORCH_TYPES[self._precision]
        self._with_plan = not flash_attention_applies(processes.device.type, dtype, model.head_size)
        self._num_rows = len(problem.train_text.lengths)
        self._steps_per_epoch = math.ceil(self._num_rows / fitting.batch_size)
        self._total_steps = self._steps_per_epoch * fitting.num_train_epochs

    def run(self, tracker: Tracker, predictions_directory: str) -> Fitted:
        """Train all epochs and return the best one; rank 0 writes its predictions.

        Raises:
            InputError: a loss, a gradient, the best epoch's scores or its weights are not finite.
        """
        config, problem = self._config, self._problem
        engine = self.build_engine()
        forward = self.forward(engine)
        best: tuple[int, dict[str, float], dict[str, torch.Tensor]] | None = None
        for epoch in range(1, config.num_train_epochs + 1):
            loss = self.train_epoch(engine, epoch - 1, tracker)
            metrics = problem.evaluate(forward)
            tracker.log(epoch * self._steps_per_epoch, {f"dev_{name}": value for name, value in metrics.items()})
            shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self._say(f"epoch {epoch}/{config.num_train_epochs}: training loss {loss:.4f}, dev {shown}")
            score = metrics[problem.metric]
            # A NaN score is never the best, and never blocks a later one.
            if best is None or math.isnan(best[1][problem.metric]) or score > best[1][problem.metric]:
                best = (epoch, metrics, engine.full_precision_state())
            elif config.early_stopping_epochs and epoch - best[0] >= config.early_stopping_epochs:
                self._say(f"stopping early: no better {problem.metric} since epoch {best[0]}")
                break
        assert best is not None
        fault = result_fault(best[2], best[1]) if self._processes.is_first else None
        if fault := self._processes.from_first(fault):
            raise InputError(unusable(f"fine-tuning, epoch {best[0]}", fault))
        # Predict with the best epoch's weights, not the last one's.
        engine.load_full_precision_state(best[2])
        more = problem.finish(forward, predictions_directory) if self._processes.is_first else FamilyStatistics()
        engine.close()
        return Fitted(*best, self._processes.from_first(more))

    def build_engine(self) -> TrainingEngine:
        """Build the model with its initial weights, under DeepSpeed."""
        beginning, config = self._beginning, self._config
        model = self._problem.build_model(beginning.model, beginning.vocab_size)
        initialize_weights(model, beginning.model.initializer_range, config.seed)
        if (directory := beginning.encoder_directory) is not None:
            weights = {name: tensor for name, tensor in read_weights(directory).items() if name.startswith("bert.")}
            fresh = load_into(model, weights, directory, optional=(*self._problem.head_prefixes, "bert.pooler."))
            if any(name.startswith("bert.pooler.") for name in fresh):
                self._say(f"{directory} has no pooler; it is initialized with random weights")
        # With 16 bits a ZeRO stage keeps the fp32 master weights; in fp32 it would only add work.
        zero_stage = 0 if self._precision == "fp32" else 2
        local_batch_size = math.ceil(config.batch_size / self._processes.world_size)
        settings = EngineSettings(zero_stage, self._precision, self._optimizer.max_grad_norm, local_batch_size, 1)
        return TrainingEngine(model, build_optimizer(model, self._optimizer), settings, self._processes)

    def train_epoch(self, engine: TrainingEngine, epoch: int, tracker: Tracker) -> float:
        """Train one pass over the rows, in the order of epoch `epoch` (from 0), and return the mean loss."""
        config = self._config
        order = keyed_permutation(self._num_rows, config.seed, "fine-tuning", "epoch", epoch)
        num_warmup_steps = int(self._total_steps * config.warmup_proportion)
        schedule = Schedule(config.learning_rate, num_warmup_steps, self._total_steps)
        engine.train()
        total, since_line, steps_since_line, clock = 0.0, 0.0, 0, time.monotonic()
        for index in range(self._steps_per_epoch):
            step = epoch * self._steps_per_epoch + index
            rows = order[index * config.batch_size : (index + 1) * config.batch_size]
            value = self._micro_step(engine, rows, keyed_seed(config.seed, "dropout", step, self._processes.rank))
            engine.step(schedule.rate_at(step))
            if not engine.was_updated and self._precision != "fp16":
                raise InputError(
                    f"step {step + 1}: loss {value:.4g} or its gradient is not finite; lower learning_rate = "
                    f"{config.learning_rate:g}, or check the encoder's weights"
                )
            total, since_line, steps_since_line = total + value, since_line + value, steps_since_line + 1
            # Also log at the end of an epoch shorter than the interval.
            if (step + 1) % config.log_every_steps == 0 or (
                index + 1 == self._steps_per_epoch < config.log_every_steps
            ):
                mean, seconds = since_line / steps_since_line, time.monotonic() - clock
                left_seconds = (self._total_steps - step - 1) * seconds / steps_since_line
                tracker.log(step + 1, {"loss": mean})
                self._say(f"step {step + 1}/{self._total_steps}: loss {mean:.4f}, {left_seconds:.0f} s left")
                since_line, steps_since_line, clock = 0.0, 0, time.monotonic()
        return total / self._steps_per_epoch

    def _micro_step(self, engine: TrainingEngine, rows: IntArray, dropout_seed: int) -> float:
        """Forward and backward of this rank's part of a batch; returns the complete batch's mean loss."""
        num_terms = self._problem.num_loss_terms(rows)
        # Every n-th row. In the last, shorter batch a rank may have none; it then repeats one with weight 0.
        own = rows[self._processes.rank :: self._processes.world_size]
        weight = 1.0 if len(own) else 0.0
        own = own if len(own) else rows[:1]
        seed_dropout(dropout_seed)
        own = own[np.argsort(-self._problem.train_text.lengths[own], kind="stable")]
        packed = self._packed(self._problem.train_text, own)
        loss = self._problem.loss_sum(engine(packed), own, packed) * (weight / num_terms)
        engine.backward(loss, is_last=True)
        return float(self._processes.sum(loss.detach().clone()))

    def _packed(self, text: EncodedText, rows: IntArray) -> PackedSequences:
        tokens = np.concatenate([text.input_ids[row] for row in rows])
        device = self._processes.device
        return pack(tokens, text.lengths[rows], text.segment_b_starts[rows], self._with_plan).to(device)

    def forward(self, engine: TrainingEngine) -> Forward:
        """The function by which a problem runs the model over its rows."""

        def forward(text: EncodedText) -> Batches:
            engine.eval()
            for rows in _by_length(text):
                packed = self._packed(text, rows)
                with torch.no_grad():
                    output = engine(packed).float().cpu()
                yield rows, packed, output

        return forward


def _by_length(text: EncodedText) -> Iterator[IntArray]:
    """All rows, longest first, in batches of about equal numbers of tokens."""
    order = np.argsort(-text.lengths, kind="stable")
    batch_numbers = (np.cumsum(text.lengths[order]) - 1) // EVALUATION_BATCH_TOKENS
    yield from np.split(order, np.flatnonzero(np.diff(batch_numbers)) + 1)
