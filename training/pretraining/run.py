"""The pre-training run: phases, steps, evaluation, checkpoints and the final export."""

from __future__ import annotations

import contextlib
import enum
import gc
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import record_of, write_manifest
from pipelines.contract.workspace import (
    CHECKPOINTS_DIRECTORY,
    DOCUMENTS,
    ENCODER_DIRECTORY,
    EXAMPLES,
    METRICS_NAME,
    PRETRAINING,
    VOCABULARY,
    VOCABULARY_NAME,
    code_version,
    length_directory,
    vocabulary_size,
)
from pipelines.results.marks import building_directory
from training.bert.attention import flash_attention_applies
from training.bert.heads import BertForPreTraining
from training.bert.huggingface import huggingface_config, write_model
from training.bert.losses import pretraining_loss
from training.bert.modeling import compile_layers, initialize_weights, parameter_count
from training.bert.sizes import disk_bytes_pretraining
from training.data.arrow_examples import ArrowExamples
from training.data.batches import StepBatch
from training.data.dynamic_masking import DynamicMasking, masking_of
from training.data.ordering import GlobalOrder, keyed_seed
from training.data.step_reader import StepReader
from training.engine.optimizer import build_optimizer
from training.engine.precision import TORCH_TYPES, resolved_precision, seed_dropout
from training.engine.processes import Processes
from training.engine.schedule import learning_rate_at
from training.engine.training_engine import EngineSettings, TrainingEngine
from training.pretraining.alarms import Alarms
from training.pretraining.curves import CURVES_NAME, draw_curves
from training.pretraining.evaluation import accuracies_in_words, batch_sums, evaluate, metrics_from_sums
from training.pretraining.meter import FlopsOfSteps, LargestGradient, Meter
from training.pretraining.throughput import measured_peak_flops
from training.pretraining.unigram_baseline import UnigramBaseline, baseline_warning, unigram_baseline
from training.resuming.checkpoint_writer import CheckpointWriter
from training.resuming.checkpointed_stage import begin, complete, lock_of_ranks, on_first
from training.resuming.checkpoints import CheckpointStore, Retention
from training.resuming.process_end import StopRequest
from training.resuming.progress import Progress
from training.resuming.recovery import Limits, Verdict, judge
from training.resuming.result_checks import require_finite
from training.settings.fidelity import deviations, in_words
from training.settings.pretraining import PhaseConfig
from training.stages.pretraining import PretrainingInputs, verify_inputs
from training.tokenizing.checks import require_same_tokenizer
from training.tracking.tracker import Tracker

EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL: a scheduler may start the run again, and it goes on from its checkpoint."""

ENGINE_JSON_NAME = "deepspeed.json"


class Ending(enum.Enum):
    """Why training stopped going through its steps."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    ROLL_BACK = "roll back"


class PretrainingRun:
    """One run of one process; all ranks do the same, rank 0 also speaks and writes."""

    def __init__(self, inputs: PretrainingInputs, processes: Processes, stop: StopRequest) -> None:
        self._inputs, self._config, self._processes, self._stop = inputs, inputs.pretraining, processes, stop
        self._directory = building_directory(inputs.directory)
        self._checkpoints = CheckpointStore(
            storage.join(self._directory, CHECKPOINTS_DIRECTORY),
            inputs.key,
            Retention(self._config.keep_checkpoints, self._config.keep_every_n_steps),
            processes,
            CheckpointWriter(processes.rank, processes.world_size, self._config.async_checkpoints),
            self._say,
        )
        self._vocab_size = vocabulary_size(inputs.vocabulary_directory)
        self._precision = resolved_precision(self._config.precision, processes.device)
        self._limits = Limits(
            self._config.max_bad_steps,
            self._config.loss_spike_deviations,
            self._config.max_rollbacks,
            gradients_are_scaled=self._precision == "fp16",
        )
        self._with_plan = not flash_attention_applies(
            processes.device.type, TORCH_TYPES[self._precision], inputs.model.attention_probs_dropout_prob
        )
        self._deviations = in_words(deviations(inputs.model, inputs.pretraining, inputs.examples.config))

    def _say(self, line: str) -> None:
        if self._processes.is_first:
            print(f"pretraining: {line}", flush=True)

    def run(self, restart: str | None) -> int:
        """Train to the end, or until asked to stop.

        Returns:
            0, or EXIT_INTERRUPTED after a checkpoint.
        """
        inputs, processes = self._inputs, self._processes
        with lock_of_ranks(processes, inputs.workspace, PRETRAINING, reads=(EXAMPLES, VOCABULARY)):
            self._check_before_the_first_write()
            if not on_first(processes, lambda: begin(inputs.key, inputs.directory, restart, self._say)):
                return 0
            return self._run()

    def _run(self) -> int:
        found = self._checkpoints.newest()
        while True:
            engine = self._build_engine()
            progress = self._resume(engine, found)
            ending, progress = self._train(engine, progress)
            engine.close()
            if ending is not Ending.ROLL_BACK:
                return EXIT_INTERRUPTED if ending is Ending.INTERRUPTED else 0
            # A fresh engine, as after a restart: DeepSpeed loads into one that has not trained yet. The old one is full
            # of cycles, and has to leave the device's memory first.
            del engine
            gc.collect()
            found = self._return_point(progress)

    def _train(self, engine: TrainingEngine, progress: Progress) -> tuple[Ending, Progress]:
        resumed_step = progress.step if progress.step else -1
        said = {"deviations_from_bert": self._deviations}
        with Tracker(self._directory, self._processes.is_first, "pretraining.", resumed_step, said) as tracker:
            if not progress.step:
                # At the length that the run ends with, so that before and after can be compared.
                before = self._evaluate(engine, self._config.phases[-1], progress, tracker)
                progress = replace(progress, statistics={"heldout_before": before})
            if events := progress.health.events():
                tracker.log(progress.step, events)
            while progress.phase < len(self._config.phases):
                progress, ending = self._train_phase(engine, progress, tracker)
                if ending is not None:
                    self._checkpoints.wait()
                    return ending, progress
            after = self._evaluate(engine, self._config.phases[-1], progress, tracker)
            self._checkpoints.wait()
            state = engine.full_precision_state()
        # The metrics are closed: what is complete changes its place.
        on_first(self._processes, lambda: self._export(state, progress, after))
        return Ending.COMPLETE, progress

    def _return_point(self, bad: Progress) -> tuple[str, Progress]:
        """The last checkpoint before the bad steps, to be continued behind their data."""
        found = self._checkpoints.newest(
            lambda progress: progress.phase == bad.phase and not progress.health.bad_steps_in_a_row
        )
        if found is None:
            raise InputError(f"{self._diverged(bad)}, and there is no checkpoint of this phase to go back to")
        name, checkpoint = found
        self._checkpoints.drop_after(name)
        self._say(f"going back to checkpoint {name}, and on from sample {bad.position:,} of phase {bad.phase}")
        health = bad.health.returned_to(checkpoint.health)
        return name, replace(checkpoint, position=bad.position, health=health)

    def _diverged(self, progress: Progress) -> str:
        return (
            f"{self._inputs.recipe.path}: {progress.health.bad_steps_in_a_row} steps in a row until step "
            f"{progress.step} had a loss or gradient that is not finite or far above its median, after "
            f"{progress.health.rollbacks} returns to a checkpoint; lower pretraining.learning_rate and --restart, or "
            "raise pretraining.max_bad_steps or max_rollbacks"
        )

    def _check_before_the_first_write(self) -> None:
        """All that can be refused is refused here: ranks, rows, masking, the bytes of the inputs, room on the disk.

        Raises:
            InputError: on all ranks.
        """
        on_first(self._processes, lambda: verify_inputs(self._inputs))
        for phase in self._config.phases:
            self._share(phase)
            examples = self._examples("train", phase)
            if not examples.num_rows:
                raise InputError(
                    f"{self._inputs.examples_directory}: no training examples of length {phase.max_seq_length}; "
                    "give the documents stage more text"
                )
            self._masking(examples)
        on_first(self._processes, lambda: self._require_same_tokenizer(self._inputs.vocabulary_directory))
        with torch.device("meta"):
            model = BertForPreTraining(self._inputs.model, self._vocab_size, self._inputs.next_sentence)
        if not os.path.isdir(self._directory):
            needed_bytes = disk_bytes_pretraining(self._config, parameter_count(model))
            on_first(
                self._processes,
                lambda: storage.require_free_space(
                    self._inputs.directory, needed_bytes, "the checkpoints and the encoder"
                ),
            )

    def _require_same_tokenizer(self, directory: str) -> None:
        """Check that a directory's tokenizer gives the ids of the examples, on a sample of the corpus."""
        inputs = self._inputs
        documents = storage.join(inputs.workspace, DOCUMENTS)
        require_same_tokenizer(directory, inputs.vocabulary_directory, inputs.examples_directory, documents)

    def _unigram_baseline(self) -> UnigramBaseline | None:
        """Held-out masked-LM scores of a model that knows only how frequent each token is."""
        phase = self._config.phases[-1]
        if not self._inputs.examples.files_of("heldout", length_directory(phase.max_seq_length)):
            return None
        return unigram_baseline(
            self._examples("train", phase), self._examples("heldout", phase), self._config.eval_examples
        )

    def _build_engine(self) -> TrainingEngine:
        config = self._config
        model = BertForPreTraining(self._inputs.model, self._vocab_size, self._inputs.next_sentence)
        initialize_weights(model, self._inputs.model.initializer_range, config.seed)
        model.bert.encoder.activation_checkpointing = config.activation_checkpointing
        if config.compile:
            compile_layers(model.bert)
        self._architecture = model.architecture
        pooler = model.bert.pooler
        self._pooler_gradient = LargestGradient(pooler.dense.weight) if pooler is not None else None
        optimizer = build_optimizer(model, config)
        shares = [self._share(phase) for phase in config.phases]
        settings = EngineSettings(
            config.zero_stage,
            self._precision,
            config.max_grad_norm,
            micro_batch_size=max(size for size, _ in shares),
            gradient_accumulation_steps=max(count for _, count in shares),
            offload_optimizer=config.offload_optimizer,
        )
        self._parameters = parameter_count(model)
        if self._processes.is_first:
            text = json.dumps(settings.deepspeed_json(), indent=1) + "\n"
            storage.write_bytes(storage.join(self._directory, ENGINE_JSON_NAME), text.encode())
        self._say(
            f"{self._parameters:,} parameters, vocabulary {self._vocab_size:,}, {self._processes.world_size} ranks on "
            f"{self._processes.device.type}, ZeRO stage {config.zero_stage}, {self._precision}"
        )
        self._say(f"deviations from BERT: {self._deviations}")
        own_peak = measured_peak_flops(self._processes.device, TORCH_TYPES[self._precision])
        peaks = self._processes.sum(torch.tensor(own_peak, dtype=torch.float64, device=self._processes.device))
        self._peak_flops = float(peaks)
        return TrainingEngine(model, optimizer, settings, self._processes)

    def _share(self, phase: PhaseConfig) -> tuple[int, int]:
        """Sequences of the largest micro-batch of a rank, and how many micro-batches a step has."""
        world_size = self._processes.world_size
        own = -(-phase.full_sequences // world_size)
        micro_batches = -(-own // (self._config.micro_batch_size or own))
        if phase.full_sequences < world_size * micro_batches:
            raise InputError(
                f"{self._inputs.recipe.path}: a step of {phase.full_sequences} full sequences (global_batch_size, "
                f"global_batch_tokens) is too small for {world_size} ranks with {micro_batches} micro-batches each; "
                "raise it, or use fewer ranks"
            )
        return -(-own // micro_batches), micro_batches

    def _resume(self, engine: TrainingEngine, found: tuple[str, Progress] | None) -> Progress:
        world_size = self._processes.world_size
        if found is None:
            return Progress(world_size=world_size)
        name, progress = found
        self._checkpoints.load(engine, name, progress.world_size)
        self._say(f"resumed from checkpoint {name}")
        return replace(progress, world_size=world_size)

    def _examples(self, split: Any, phase: PhaseConfig) -> ArrowExamples:
        return ArrowExamples(self._inputs.examples_directory, self._inputs.examples, split, phase.max_seq_length)

    def _masking(self, examples: ArrowExamples) -> DynamicMasking | None:
        vocabulary_uri = storage.join(self._inputs.vocabulary_directory, VOCABULARY_NAME)
        tokens = storage.read_bytes(vocabulary_uri).decode().split("\n")[:-1]
        return masking_of(examples.metadata, tokens, always=self._config.masking == "dynamic")

    def _evaluate(
        self, engine: TrainingEngine, phase: PhaseConfig, progress: Progress, tracker: Tracker
    ) -> dict[str, float]:
        """Held-out metrics; empty where the corpus left no document to hold out."""
        step = progress.step
        files = self._inputs.examples.files_of("heldout", length_directory(phase.max_seq_length))
        if not sum(file.rows for file in files):
            self._say(f"step {step}: no held-out examples of length {phase.max_seq_length}, evaluation left out")
            return {}
        batch_size, _ = self._share(phase)
        examples = self._examples("heldout", phase)
        metrics = evaluate(
            engine, examples, self._config.eval_examples, batch_size, self._with_plan, self._masking(examples)
        )
        self._say(
            f"step {step}: held-out at length {phase.max_seq_length}: loss {metrics['loss']:.4f}, "
            f"{accuracies_in_words(metrics)}, perplexity {metrics['mlm_perplexity']:.1f}"
        )
        heldout = {f"heldout_{name}": value for name, value in metrics.items()}
        tracker.log(step, {"tokens": float(progress.tokens), **heldout})
        return metrics

    def _train_phase(
        self, engine: TrainingEngine, progress: Progress, tracker: Tracker
    ) -> tuple[Progress, Ending | None]:
        phase = self._config.phases[progress.phase]
        examples = self._examples("train", phase)
        order = GlobalOrder(examples.num_rows, self._config.seed, f"phase{progress.phase}")
        _, micro_batches = self._share(phase)
        reader = StepReader(
            examples,
            order,
            phase.global_batch_size if phase.global_batch_tokens is None else None,
            micro_batches,
            self._processes.rank,
            self._processes.world_size,
            self._processes.device,
            self._with_plan,
            global_batch_tokens=phase.global_batch_tokens,
            masking=self._masking(examples),
        )
        alarms = Alarms(self._config.num_warmup_steps)
        meter = Meter(
            self._config.num_train_steps,
            self._config.log_every_steps,
            self._say,
            tracker,
            FlopsOfSteps(self._inputs.model, self._vocab_size, self._peak_flops),
            alarms,
            self._pooler_gradient,
        )
        engine.train()
        batches = reader.steps(progress.position, phase.steps - progress.phase_step)
        with contextlib.closing(batches):
            return self._train_on(engine, progress, batches, meter, alarms, tracker)

    def _train_on(
        self,
        engine: TrainingEngine,
        progress: Progress,
        batches: Iterator[StepBatch],
        meter: Meter,
        alarms: Alarms,
        tracker: Tracker,
    ) -> tuple[Progress, Ending | None]:
        phase = self._config.phases[progress.phase]
        for batch in batches:
            started = time.monotonic()
            sums, rate, norm, stop = self._step(engine, batch, progress.step)
            progress = replace(
                progress,
                step=progress.step + 1,
                phase_step=progress.phase_step + 1,
                position=batch.next_position,
                tokens=progress.tokens + batch.global_tokens,
                sequences=progress.sequences + batch.global_sequences,
                seconds=progress.seconds + time.monotonic() - started,
            )
            self._processes.reached(progress.step)
            health, verdict = judge(progress.health, metrics_from_sums(sums)["loss"], engine.was_updated, self._limits)
            progress = replace(progress, health=health)
            if verdict is not Verdict.ACCEPT:
                self._report(verdict, progress, tracker)
                if verdict is Verdict.ROLL_BACK:
                    return progress, Ending.ROLL_BACK
            if progress.phase_step == phase.steps:
                health = health.for_next_phase()
                progress = replace(progress, phase=progress.phase + 1, phase_step=0, position=0, health=health)
            if verdict is not Verdict.SKIP:
                meter.add(progress, sums, rate, norm, batch)
            is_last = progress.step == self._config.num_train_steps
            # A return leads to a checkpoint of the same phase from before the bad steps.
            is_due = not progress.phase_step or progress.step % self._config.checkpoint_every_steps == 0
            if stop or is_last or (is_due and not health.bad_steps_in_a_row):
                self._checkpoints.save(engine, progress)
            if stop and not is_last:
                self._say(
                    f"stopped by a signal after step {progress.step}; a checkpoint is written, run again to go on"
                )
                return progress, Ending.INTERRUPTED
            if progress.step % self._config.eval_every_steps == 0 and not is_last:
                heldout = self._evaluate(engine, phase, progress, tracker)
                for alarm in alarms.observe_heldout(heldout) if heldout else []:
                    self._say(f"ALARM at step {progress.step}: {alarm}")
            meter.restart_clock()
        return progress, None

    def _report(self, verdict: Verdict, progress: Progress, tracker: Tracker) -> None:
        health = progress.health
        tracker.log(progress.step, health.events())
        if verdict is Verdict.STOP:
            raise InputError(self._diverged(progress))
        what = "loss far above its median" if verdict is Verdict.SPIKE else "loss or gradient not finite, no update"
        if verdict is Verdict.ROLL_BACK:
            what = "too many bad steps in a row"
        self._say(
            f"step {progress.step}: {what} ({health.bad_steps_in_a_row} bad steps in a row; so far "
            f"{health.skipped_steps} skipped, {health.loss_spikes} spikes, {health.rollbacks} returns)"
        )

    def _step(self, engine: TrainingEngine, batch: StepBatch, step: int) -> tuple[torch.Tensor, float, float, bool]:
        """One optimizer step: sums [6] over all ranks, learning rate, gradient norm, and whether a rank shall stop."""
        processes = self._processes
        sums = torch.zeros(8, dtype=torch.float64, device=processes.device)
        for index, micro_batch in enumerate(batch.micro_batches):
            seed_dropout(keyed_seed(self._config.seed, "dropout", step, processes.rank, index))
            part, output = batch_sums(engine, micro_batch.to(processes.device))
            loss = pretraining_loss(
                output.mlm_loss_sum, output.nsp_loss_sum, batch.global_masked_tokens, batch.global_sequences
            )
            engine.backward(loss, is_last=index == len(batch.micro_batches) - 1)
            sums[:6] += part
        config = self._config
        rate = learning_rate_at(
            step,
            config.learning_rate,
            config.num_warmup_steps,
            config.num_train_steps,
            config.schedule,
            config.num_decay_steps,
        )
        norm = engine.step(rate)
        sums[6], sums[7] = float(self._stop.received), float(engine.was_updated)
        processes.sum(sums)
        assert sums[7] in (0.0, processes.world_size), "some ranks have taken a step that others have not"
        return sums[:6].cpu(), rate, norm, bool(sums[6] > 0)

    def _export(self, state: dict[str, torch.Tensor], progress: Progress, after: dict[str, float]) -> None:
        require_finite(state, after, self._inputs.recipe.path)
        directory = self._directory
        names = write_model(
            storage.join(directory, ENCODER_DIRECTORY),
            state,
            huggingface_config(self._inputs.model, self._vocab_size, self._architecture),
            self._inputs.vocabulary_directory,
        )
        self._require_same_tokenizer(storage.join(directory, ENCODER_DIRECTORY))
        records = [record_of(directory, f"{ENCODER_DIRECTORY}/{name}", 0) for name in names]
        baseline = self._unigram_baseline()
        warning = baseline_warning(after["mlm_loss"], baseline.loss) if after and baseline else None
        if warning:
            self._say(f"WARNING: {warning}")
        statistics = {
            **progress.statistics,
            "heldout_after": after,
            "steps": progress.step,
            "tokens": progress.tokens,
            "sequences": progress.sequences,
            "parameters": self._parameters,
            "deviations": self._deviations,
            "world_size": progress.world_size,
            "unigram_baseline": baseline._asdict() if baseline else {},
            "warnings": [warning] if warning else [],
        }
        title = f"{self._parameters:,} parameters, {progress.step:,} steps, {progress.tokens:,} tokens"
        draw_curves(storage.join(directory, METRICS_NAME), storage.join(directory, CURVES_NAME), title)
        write_manifest(directory, self._inputs.key.manifest(records, statistics, code_version()))
        complete(self._inputs.key, self._inputs.directory, self._say)
        rate = progress.tokens / max(progress.seconds, 1e-9)
        self._say(f"complete: {progress.step} steps, {progress.tokens:,} tokens, {rate:,.0f} tokens/s in steps")
