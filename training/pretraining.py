"""The pre-training run: phases, steps, evaluation, checkpoints and the final export."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import torch

from pipelines import storage
from pipelines.contract import clear_stage, length_directory, read_manifest, record_of, verify_file, write_manifest
from pipelines.recipe import InputError
from training.attention import flash_attention_applies
from training.checkpoint import CHECKPOINTS_DIRECTORY, CheckpointStore, Progress
from training.config import PhaseConfig
from training.data import ArrowExamples, StepBatch, StepReader
from training.engine import EngineSettings, Processes, TrainingEngine, resolved_precision, seed_dropout
from training.evaluation import batch_sums, evaluate, metrics_from_sums
from training.heads import BertForPreTraining
from training.interchange import huggingface_config, write_model
from training.losses import pretraining_loss
from training.modeling import initialize_weights, parameter_count
from training.optimizer import build_optimizer
from training.ordering import GlobalOrder, keyed_seed
from training.schedule import learning_rate_at
from training.stages import ENCODER_DIRECTORY, PretrainingInputs, code_version, vocabulary_size
from training.tracking import Tracker

EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL: a scheduler may start the run again, and it goes on from its checkpoint."""

ENGINE_JSON_NAME = "deepspeed.json"


class StopRequest:
    """Remembers SIGTERM and SIGINT, so that the step that is under way can be finished."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True


class PretrainingRun:
    """One run of one process; all ranks do the same, rank 0 also speaks and writes."""

    def __init__(self, inputs: PretrainingInputs, processes: Processes, stop: StopRequest) -> None:
        self._inputs, self._config, self._processes, self._stop = inputs, inputs.pretraining, processes, stop
        self._checkpoints = CheckpointStore(
            storage.join(inputs.directory, CHECKPOINTS_DIRECTORY),
            inputs.key,
            inputs.pretraining.keep_checkpoints,
            processes,
            self._say,
        )
        self._vocab_size = vocabulary_size(inputs.vocabulary_directory)
        self._precision = resolved_precision(self._config.precision, processes.device)
        dtype = torch.bfloat16 if self._precision == "bf16" else torch.float32
        self._with_plan = not flash_attention_applies(
            processes.device.type, dtype, inputs.model.attention_probs_dropout_prob
        )

    def _say(self, line: str) -> None:
        if self._processes.is_first:
            print(f"pretraining: {line}", flush=True)

    def run(self, restart: bool) -> int:
        """Train to the end, or until asked to stop.

        Returns:
            0, or EXIT_INTERRUPTED after a checkpoint.
        """
        self._clear_what_is_not_ours(restart)
        engine = self._build_engine()
        progress = self._resume(engine)
        resumed_step = progress.step if progress.step else -1
        with Tracker(self._inputs.directory, self._processes.is_first, "pretraining.", resumed_step) as tracker:
            if not progress.step:
                self._verify_examples()
                # At the length that the run ends with, so that before and after can be compared.
                before = self._evaluate(engine, self._config.phases[-1], 0, tracker)
                progress = replace(progress, statistics={"heldout_before": before})
            while progress.phase < len(self._config.phases):
                progress, interrupted = self._train_phase(engine, progress, tracker)
                if interrupted:
                    return EXIT_INTERRUPTED
            after = self._evaluate(engine, self._config.phases[-1], progress.step, tracker)
            self._export(engine, progress, after)
        engine.close()
        return 0

    def _clear_what_is_not_ours(self, restart: bool) -> None:
        directory = self._inputs.directory
        if self._processes.is_first:
            if restart or read_manifest(directory) is not None:
                # Whoever called us has compared the manifest: a complete stage gets here only if it does not match.
                clear_stage(directory)
            os.makedirs(directory, exist_ok=True)
        self._processes.barrier()

    def _verify_examples(self) -> None:
        """Compare the checksums of all shards that the run will read; once, when it begins."""
        problem = ""
        if self._processes.is_first:
            lengths = {phase.max_seq_length for phase in self._config.phases}
            try:
                for file in self._inputs.examples.files:
                    if file.name.split("/")[0] in {length_directory(length) for length in lengths}:
                        verify_file(self._inputs.examples_directory, file)
            except InputError as error:
                problem = str(error)
        if problem := self._processes.from_first(problem):
            raise InputError(problem)

    def _build_engine(self) -> TrainingEngine:
        config = self._config
        model = BertForPreTraining(self._inputs.model, self._vocab_size)
        initialize_weights(model, self._inputs.model.initializer_range, config.seed)
        optimizer = build_optimizer(model, config)
        shares = [self._share(phase) for phase in config.phases]
        settings = EngineSettings(
            config.zero_stage,
            self._precision,
            config.max_grad_norm,
            micro_batch_size=max(size for size, _ in shares),
            gradient_accumulation_steps=max(count for _, count in shares),
        )
        self._parameters = parameter_count(model)
        if self._processes.is_first:
            text = json.dumps(settings.deepspeed_json(), indent=1) + "\n"
            storage.write_bytes(storage.join(self._inputs.directory, ENGINE_JSON_NAME), text.encode())
        self._say(
            f"{self._parameters:,} parameters, vocabulary {self._vocab_size:,}, {self._processes.world_size} ranks on "
            f"{self._processes.device.type}, ZeRO stage {config.zero_stage}, {self._precision}"
        )
        return TrainingEngine(model, optimizer, settings, self._processes)

    def _share(self, phase: PhaseConfig) -> tuple[int, int]:
        """Sequences of the largest micro-batch of a rank, and how many micro-batches a step has."""
        world_size = self._processes.world_size
        own = -(-phase.global_batch_size // world_size)
        micro_batches = -(-own // (self._config.micro_batch_size or own))
        if phase.global_batch_size < world_size * micro_batches:
            raise InputError(
                f"{self._inputs.recipe.path}: pretraining global_batch_size = {phase.global_batch_size} is too small "
                f"for {world_size} ranks with {micro_batches} micro-batches each; raise it, or use fewer ranks"
            )
        return -(-own // micro_batches), micro_batches

    def _resume(self, engine: TrainingEngine) -> Progress:
        found = self._checkpoints.newest()
        if found is None:
            return Progress(world_size=self._processes.world_size)
        name, progress = found
        self._checkpoints.load(engine, name)
        self._say(f"resumed from checkpoint {name}")
        return progress

    def _examples(self, split: Any, phase: PhaseConfig) -> ArrowExamples:
        return ArrowExamples(self._inputs.examples_directory, self._inputs.examples, split, phase.max_seq_length)

    def _evaluate(self, engine: TrainingEngine, phase: PhaseConfig, step: int, tracker: Tracker) -> dict[str, float]:
        """Held-out metrics; empty where the corpus left no document to hold out."""
        files = self._inputs.examples.files_of("heldout", length_directory(phase.max_seq_length))
        if not sum(file.rows for file in files):
            self._say(f"step {step}: no held-out examples of length {phase.max_seq_length}, evaluation left out")
            return {}
        batch_size, _ = self._share(phase)
        metrics = evaluate(
            engine, self._examples("heldout", phase), self._config.eval_examples, batch_size, self._with_plan
        )
        self._say(
            f"step {step}: held-out at length {phase.max_seq_length}: loss {metrics['loss']:.4f}, "
            f"MLM accuracy {metrics['mlm_accuracy']:.4f}, perplexity {metrics['mlm_perplexity']:.1f}, "
            f"NSP accuracy {metrics['nsp_accuracy']:.4f}"
        )
        tracker.log(step, {f"heldout_{name}": value for name, value in metrics.items()})
        return metrics

    def _train_phase(self, engine: TrainingEngine, progress: Progress, tracker: Tracker) -> tuple[Progress, bool]:
        phase = self._config.phases[progress.phase]
        examples = self._examples("train", phase)
        if not examples.num_rows:
            raise InputError(
                f"{self._inputs.examples_directory}: no training examples of length {phase.max_seq_length}; "
                "give the documents stage more text"
            )
        order = GlobalOrder(examples.num_rows, self._config.seed, f"phase{progress.phase}")
        _, micro_batches = self._share(phase)
        reader = StepReader(
            examples,
            order,
            phase.global_batch_size,
            micro_batches,
            self._processes.rank,
            self._processes.world_size,
            self._processes.device,
            self._with_plan,
        )
        meter = _Meter(self._config.num_train_steps, self._say, tracker, self._config.log_every_steps)
        engine.train()
        for batch in reader.steps(progress.position, phase.steps - progress.phase_step):
            started = time.monotonic()
            sums, rate, norm, stop = self._step(engine, batch, progress.step)
            progress = replace(
                progress,
                step=progress.step + 1,
                phase_step=progress.phase_step + 1,
                position=progress.position + phase.global_batch_size,
                tokens=progress.tokens + batch.global_tokens,
                sequences=progress.sequences + batch.global_sequences,
                seconds=progress.seconds + time.monotonic() - started,
            )
            if progress.phase_step == phase.steps:
                progress = replace(progress, phase=progress.phase + 1, phase_step=0, position=0)
            meter.add(progress, sums, rate, norm, batch.global_tokens)
            is_last = progress.step == self._config.num_train_steps
            if stop or is_last or progress.step % self._config.checkpoint_every_steps == 0:
                self._checkpoints.save(engine, progress)
            if stop and not is_last:
                self._say(
                    f"stopped by a signal after step {progress.step}; a checkpoint is written, run again to go on"
                )
                return progress, True
            if progress.step % self._config.eval_every_steps == 0 and not is_last:
                self._evaluate(engine, phase, progress.step, tracker)
            meter.restart_clock()
        return progress, False

    def _step(self, engine: TrainingEngine, batch: StepBatch, step: int) -> tuple[torch.Tensor, float, float, bool]:
        """One optimizer step: sums [6] over all ranks, learning rate, gradient norm, and whether a rank shall stop."""
        processes = self._processes
        sums = torch.zeros(7, dtype=torch.float64, device=processes.device)
        for index, micro_batch in enumerate(batch.micro_batches):
            seed_dropout(keyed_seed(self._config.seed, "dropout", step, processes.rank, index))
            part, output = batch_sums(engine, micro_batch.to(processes.device))
            loss = pretraining_loss(
                output.mlm_loss_sum, output.nsp_loss_sum, batch.global_masked_tokens, batch.global_sequences
            )
            engine.backward(loss, is_last=index == len(batch.micro_batches) - 1)
            sums[:6] += part
        rate = learning_rate_at(
            step, self._config.learning_rate, self._config.num_warmup_steps, self._config.num_train_steps
        )
        norm = engine.step(rate)
        sums[6] = float(self._stop.received)
        processes.sum(sums)
        return sums[:6].cpu(), rate, norm, bool(sums[6] > 0)

    def _export(self, engine: TrainingEngine, progress: Progress, after: dict[str, float]) -> None:
        state = engine.full_precision_state()
        if not self._processes.is_first:
            return
        directory = self._inputs.directory
        names = write_model(
            storage.join(directory, ENCODER_DIRECTORY),
            state,
            huggingface_config(self._inputs.model, self._vocab_size, "BertForPreTraining"),
            self._inputs.vocabulary_directory,
        )
        records = [record_of(directory, f"{ENCODER_DIRECTORY}/{name}", 0) for name in names]
        statistics = {
            **progress.statistics,
            "heldout_after": after,
            "steps": progress.step,
            "tokens": progress.tokens,
            "sequences": progress.sequences,
            "parameters": self._parameters,
            "world_size": progress.world_size,
        }
        write_manifest(directory, self._inputs.key.manifest(records, statistics, code_version()))
        rate = progress.tokens / max(progress.seconds, 1e-9)
        self._say(f"complete: {progress.step} steps, {progress.tokens:,} tokens, {rate:,.0f} tokens/s in steps")


class _Meter:
    """Averages between two progress lines."""

    def __init__(self, total_steps: int, say: Callable[[str], None], tracker: Tracker, every_steps: int) -> None:
        self._total_steps, self._say, self._tracker, self._every_steps = total_steps, say, tracker, every_steps
        self._sums = torch.zeros(6, dtype=torch.float64)
        self._tokens, self._seconds, self._steps = 0, 0.0, 0
        self._clock = time.monotonic()

    def restart_clock(self) -> None:
        """Leave out what was done between steps: evaluation, checkpoints."""
        self._clock = time.monotonic()

    def add(self, progress: Progress, sums: torch.Tensor, rate: float, norm: float, tokens: int) -> None:
        self._seconds += time.monotonic() - self._clock
        self._sums += sums
        self._tokens += tokens
        self._steps += 1
        if progress.step % self._every_steps and progress.step != self._total_steps:
            return
        metrics = metrics_from_sums(self._sums)
        speed = self._tokens / max(self._seconds, 1e-9)
        left_seconds = (self._total_steps - progress.step) * self._seconds / self._steps
        self._say(
            f"step {progress.step}/{self._total_steps}: loss {metrics['loss']:.4f}, MLM accuracy "
            f"{metrics['mlm_accuracy']:.4f}, NSP accuracy {metrics['nsp_accuracy']:.4f}, {speed:,.0f} tokens/s, "
            f"{left_seconds:.0f} s left"
        )
        extra = {"learning_rate": rate, "tokens": float(progress.tokens), "tokens_per_second": speed}
        if norm == norm:
            extra["grad_norm"] = norm
        self._tracker.log(progress.step, {**metrics, **extra})
        self._sums.zero_()
        self._tokens, self._seconds, self._steps = 0, 0.0, 0
