"""The training loop of every objective: phases, steps, evaluation, checkpoints and the final export."""

from __future__ import annotations

import contextlib
import enum
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial

import torch

from pipelines.contract import storage
from pipelines.contract.errors import EXIT_REQUEUE, InputError
from pipelines.contract.manifest import write_manifest
from pipelines.contract.recipe import RunConfig
from pipelines.contract.workspace import ENCODER_DIRECTORY, ENGINE_JSON_NAME, EXAMPLES, VOCABULARY, code_version
from pipelines.statistics.metrics import HELDOUT_PREFIX
from pipelines.stores.patience import patience_seconds
from training.bert.sizes import disk_bytes_pretraining
from training.data.batches import StepBatch
from training.data.ordering import keyed_seed
from training.engine.precision import TORCH_TYPES, precision_in_words, pretraining_precision, seed_dropout
from training.engine.processes import Processes
from training.engine.training_engine import EngineSettings, TrainingEngine
from training.optimizers.building import build_optimizer
from training.optimizers.schedule import Schedule
from training.pretraining.meter import Meter
from training.pretraining.objective import Gather, Objective, Tally
from training.pretraining.row_feed import RowFeed
from training.pretraining.run_state import LargestGradient, RunState, StepResult
from training.pretraining.throughput import measured_peak_flops
from training.resuming.checkpoint_writer import CheckpointWriter
from training.resuming.checkpointed_stage import begin, complete, lock_of_ranks, on_first, verify_together
from training.resuming.checkpoints import Retention
from training.resuming.process_end import StopRequest
from training.resuming.progress import Progress
from training.resuming.recovery import Limits, Verdict, judge
from training.resuming.result_checks import require_finite
from training.resuming.run_directory import RunDirectory
from training.settings.optimization import PRECISION
from training.settings.pretraining import PhaseConfig
from training.stages.budgets import about_steps
from training.stages.continuing import Continuation
from training.stages.origins import CONTINUED_FROM
from training.tracking.tracker import Tracker

EXIT_INTERRUPTED = EXIT_REQUEUE

_OWED_ATTEMPTS = 10
"""How often a checkpoint that is owed is tried, until the next one is due."""


class Ending(enum.Enum):
    """Why the training steps ended."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    ROLL_BACK = "roll back"


class TrainingRun:
    """One run of one process; all ranks do the same, rank 0 also prints and writes."""

    def __init__(self, objective: Objective, processes: Processes, stop: StopRequest) -> None:
        inputs, config = objective.inputs, objective.settings
        self._objective, self._inputs, self._config = objective, inputs, config
        self._processes, self._stop = processes, stop
        self._stage = inputs.key.stage
        self._schedule, self._feed = Schedule.of(config), RowFeed(objective, processes)
        self._budget, self._clock = self._feed.budget(), time.monotonic
        self._output = RunDirectory(inputs.directory, inputs.recipe.section("run", RunConfig))
        self._directory = self._output.uri
        self._checkpoints = self._output.checkpoints(
            inputs.key,
            Retention(config.keep_checkpoints, config.keep_every_n_steps, config.decay_start_step),
            processes,
            CheckpointWriter(processes.rank, processes.world_size, config.async_checkpoints),
            self._say,
        )
        self._limits = Limits(
            config.max_bad_steps,
            config.loss_spike_deviations,
            config.max_rollbacks,
            gradients_are_scaled=config.precision == "fp16",
        )

    def _say(self, line: str) -> None:
        if self._processes.is_first:
            print(f"{self._stage}: {line}", flush=True)

    def run(self, restart: str | None, continuation: Continuation | None = None) -> int:
        """Train to the end, or until a stop is requested.

        Args:
            restart: see `begin`.
            continuation: the checkpoint of a finished run to start from.

        Returns:
            0, or EXIT_INTERRUPTED after a checkpoint.
        """
        inputs, processes = self._inputs, self._processes
        with lock_of_ranks(processes, inputs.workspace, self._stage, reads=(EXAMPLES, VOCABULARY)):
            self._check_before_the_first_write()
            if restart is not None:
                self._checkpoints.start_over()
            if not on_first(processes, lambda: begin(inputs.key, inputs.directory, restart, self._say, continuation)):
                return 0
            return self._run()

    def _run(self) -> int:
        found = self._checkpoints.newest()
        if found is None and CONTINUED_FROM in self._inputs.key.inputs:
            raise InputError(
                f"{self._directory}: the run was continued from a finished one, and none of its checkpoints is "
                "readable; add --continue --restart, which keeps it under a numbered name and continues anew"
            )
        size, recorded = self._objective.model.hidden_size, found[1].statistics if found else None
        self._precision = pretraining_precision(self._config.precision, self._processes, size, recorded)
        self._feed.use_precision(self._precision)
        # While the engine is built and the first evaluation runs.
        self._feed.prefetch(*((found[1].phase, found[1].position) if found else (0, 0)))
        while True:
            state = self._build_engine()
            progress = self._resume(state.engine, found)
            ending, progress = self._train(state, progress)
            state.engine.close()
            if ending is not Ending.ROLL_BACK:
                return EXIT_INTERRUPTED if ending is Ending.INTERRUPTED else 0
            # DeepSpeed loads a checkpoint into a fresh engine only. The old engine has reference cycles; free its
            # device memory first.
            del state
            gc.collect()
            found = self._return_point(progress)

    def _train(self, state: RunState, progress: Progress) -> tuple[Ending, Progress]:
        resumed_step = progress.step if progress.step else -1
        losses = [metric.name for metric in self._objective.metrics if metric.unit == "nats"]
        with (
            self._output.followed_metrics(self._processes.is_first),
            Tracker(
                self._output.path,
                self._processes.is_first,
                f"{self._stage}.",
                resumed_step,
                {**self._objective.tracked(), **progress.lineage_in_words()},
                by_tokens=[prefix + name for prefix in ("", HELDOUT_PREFIX) for name in losses],
            ) as tracker,
        ):
            if "heldout_before" not in progress.statistics:
                progress = self._score_before(state, progress, tracker)
            if events := progress.health.events():
                tracker.log(progress.step, events)
            while progress.phase < len(self._config.phases):
                progress, ending = self._train_phase(state, progress, tracker)
                if ending is Ending.INTERRUPTED:
                    self._checkpoints.stop(progress, self._stop.seconds_left())
                elif ending is not None:
                    self._checkpoints.wait()
                if ending is not None:
                    return ending, progress
            weights = self._objective.conclude(state.engine)
            after = self._evaluate(state.engine, self._config.phases[-1], progress, tracker, lambda: weights)
            self._checkpoints.wait()
        # The metrics are closed, so the build can be moved into place.
        on_first(self._processes, lambda: self._export(weights, progress, after))
        return Ending.COMPLETE, progress

    def _score_before(self, state: RunState, progress: Progress, tracker: Tracker) -> Progress:
        """Held-out metrics at the run's final length, to compare before and after."""
        phase = self._config.phases[-1]
        statistics = {}
        for name, measure in self._objective.references().items():
            statistics[name] = self._feed.heldout(measure, phase)
            if statistics[name]:
                self._say(f"held-out, {name}: {self._objective.in_words(statistics[name])}")
        statistics["heldout_before"] = self._evaluate(state.engine, phase, progress, tracker)
        return replace(progress, statistics={**progress.statistics, **statistics})

    def _return_point(self, bad: Progress) -> tuple[str, Progress]:
        """The last checkpoint before the bad steps, to continue after their data."""
        found = self._checkpoints.newest(
            lambda progress: progress.phase == bad.phase and not progress.health.bad_steps_in_a_row
        )
        if found is None:
            raise InputError(f"{self._diverged(bad)}, and there is no checkpoint of this phase to return to")
        name, checkpoint = found
        self._checkpoints.drop_after(name)
        self._say(f"returning to checkpoint {name}, continuing from sample {bad.position:,} of phase {bad.phase}")
        health = bad.health.returned_to(checkpoint.health)
        return name, replace(checkpoint, position=bad.position, health=health)

    def _diverged(self, progress: Progress) -> str:
        return (
            f"{self._inputs.recipe.path}: {progress.health.bad_steps_in_a_row} steps in a row until step "
            f"{progress.step} had a loss or gradient that is not finite or far above its median, after "
            f"{progress.health.rollbacks} returns to a checkpoint; lower {self._stage}.learning_rate and --restart, "
            f"or raise {self._stage}.max_bad_steps or max_rollbacks"
        )

    def _check_before_the_first_write(self) -> None:
        """Check everything before writing: ranks, rows, masking, checksums of the inputs, disk space.

        Raises:
            InputError: on all ranks.
        """
        for phase in self._config.phases:
            self._feed.require_rows_for_ranks(phase)
        on_first(self._processes, self._objective.check)
        verify_together(self._processes, self._objective.shard_verification)
        self._feed.require_rows()
        on_first(self._processes, self._require_free_space)

    def _require_free_space(self) -> None:
        # Only rank 0 looks: it creates the directory soon after, perhaps before another rank gets here.
        if not os.path.isdir(self._directory):
            steps = about_steps(self._config, self._inputs.examples)
            needed_bytes = disk_bytes_pretraining(self._config, self._objective.num_parameters, sum(steps or ()))
            storage.require_free_space(self._inputs.directory, needed_bytes, "the checkpoints and the encoder")

    def _build_engine(self) -> RunState:
        config, objective, processes = self._config, self._objective, self._processes
        model = objective.build()
        gradients = {name: LargestGradient(parameter) for name, parameter in objective.watched(model).items()}
        optimizer = build_optimizer(model, config, TORCH_TYPES[self._precision])
        shares = [self._feed.share(phase) for phase in config.phases]
        settings = EngineSettings(
            config.zero_stage,
            self._precision,
            config.max_grad_norm,
            micro_batch_size=max(size for size, _ in shares),
            gradient_accumulation_steps=max(count for _, count in shares),
            offload_optimizer=config.offload_optimizer,
        )
        if processes.is_first:
            text = json.dumps(settings.deepspeed_json(), indent=1) + "\n"
            storage.write_bytes(storage.join(self._directory, ENGINE_JSON_NAME), text.encode())
        self._say(
            f"{objective.num_parameters:,} parameters, vocabulary {objective.vocab_size:,}, {processes.world_size} "
            f"ranks on {processes.device.type}, ZeRO stage {config.zero_stage}, "
            + precision_in_words(config.precision, self._precision, processes, objective.model.hidden_size)
        )
        for line in objective.introduction().splitlines():
            self._say(line)
        own_peak = measured_peak_flops(processes.device, TORCH_TYPES[self._precision])
        peak = float(processes.sum(torch.tensor(own_peak, dtype=torch.float64, device=processes.device)))
        return RunState(TrainingEngine(model, optimizer, settings, processes), gradients, peak)

    def _resume(self, engine: TrainingEngine, found: tuple[str, Progress] | None) -> Progress:
        progress = Progress()
        if found is not None:
            name, progress = found
            self._checkpoints.load(engine, name, progress.world_size)
            self._say(f"resumed from checkpoint {name}")
            progress = self._objective.restored(progress)
        # A checkpoint of an earlier release did not state its precision.
        statistics = {**progress.statistics, PRECISION: self._precision}
        return replace(progress, world_size=self._processes.world_size, statistics=statistics)

    def _evaluate(
        self,
        engine: TrainingEngine,
        phase: PhaseConfig,
        progress: Progress,
        tracker: Tracker,
        gather: Gather | None = None,
    ) -> dict[str, float]:
        """Held-out metrics; empty if the corpus has no held-out documents."""
        engine.eval()
        metrics = self._feed.heldout(partial(self._objective.measure, engine), phase)
        metrics |= self._objective.evaluate(gather or engine.full_precision_state, progress)
        engine.train()
        if not metrics:
            self._say(f"step {progress.step}: no held-out examples of length {phase.max_seq_length}, none evaluated")
            return {}
        place = f"step {progress.step}: held-out at length {phase.max_seq_length}"
        self._say(f"{place}: {self._objective.in_words(metrics)}")
        heldout = {f"{HELDOUT_PREFIX}{name}": value for name, value in metrics.items()}
        tracker.log(progress.step, {"tokens": float(progress.tokens), **heldout})
        return metrics

    def _train_phase(self, state: RunState, progress: Progress, tracker: Tracker) -> tuple[Progress, Ending | None]:
        phase = self._config.phases[progress.phase]
        reader = self._feed.reader(progress.phase)
        meter = Meter(self._objective, state, tracker, self._say, self._budget, progress)
        state.engine.train()
        count = sys.maxsize if phase.steps is None else phase.steps - progress.phase_step
        batches = reader.steps(progress.position, count, progress.phase_step)
        with contextlib.closing(batches):
            return self._train_on(state.engine, progress, batches, meter, tracker)

    def _train_on(
        self, engine: TrainingEngine, progress: Progress, batches: Iterator[StepBatch], meter: Meter, tracker: Tracker
    ) -> tuple[Progress, Ending | None]:
        phase, budget = self._config.phases[progress.phase], self._budget
        by_hours, ended = budget.measure == "hours", self._clock()
        for batch in batches:
            # Hours are also spent between steps.
            started = ended if by_hours else self._clock()
            result = self._step(engine, batch, progress)
            ended = self._clock()
            seconds = ended - started
            progress = replace(
                progress,
                step=progress.step + 1,
                phase_step=progress.phase_step + 1,
                position=batch.next_position,
                tokens=progress.tokens + batch.global_tokens,
                sequences=progress.sequences + batch.global_sequences,
                # All ranks must see the same hours.
                seconds=progress.seconds + (self._processes.number_of_first(seconds) if by_hours else seconds),
            )
            self._processes.reached(progress.step)
            loss = self._objective.means(result.tally)["loss"]
            health, verdict = judge(progress.health, loss, engine.was_updated, self._limits)
            progress = replace(progress, health=health)
            if verdict is not Verdict.ACCEPT:
                self._report(verdict, progress, tracker)
                if verdict is Verdict.ROLL_BACK:
                    return progress, Ending.ROLL_BACK
            if budget.ends_phase(progress):
                health, end = health.for_next_phase(), progress.position
                progress = replace(
                    progress, phase=progress.phase + 1, phase_step=0, position=0, phase_end=end, health=health
                )
            if verdict is not Verdict.SKIP:
                meter.add(progress, result, batch)
            is_last = progress.phase == len(self._config.phases)
            # A return needs a checkpoint of the same phase from before the bad steps.
            is_due = not progress.phase_step or progress.step % self._config.checkpoint_every_steps == 0
            # A longer run continues from there.
            is_due |= progress.step == self._config.decay_start_step
            if self._checkpoints.is_owed:
                is_due |= progress.step % max(1, self._config.checkpoint_every_steps // _OWED_ATTEMPTS) == 0
            if result.stop or is_last or (is_due and not health.bad_steps_in_a_row):
                # Both the previous checkpoint and this one must be stored before the process is killed.
                wait_seconds = self._stop.seconds_left() / 2 if result.stop else patience_seconds() if is_last else 0.0
                self._checkpoints.save(engine, progress, wait_seconds)
            if result.stop and not is_last:
                return progress, Ending.INTERRUPTED
            if progress.step % self._config.eval_every_steps == 0 and not is_last:
                meter.add_heldout(progress.step, self._evaluate(engine, phase, progress, tracker))
            meter.restart_clock()
            if not progress.phase_step:
                break
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

    def _step(self, engine: TrainingEngine, batch: StepBatch, progress: Progress) -> StepResult:
        """One optimizer step, after the ones in `progress`."""
        processes, seed, step = self._processes, self._config.seed, progress.step
        tally = Tally.of(self._objective.sums, device=processes.device)
        for index, micro_batch in enumerate(batch.micro_batches):
            seed_dropout(keyed_seed(seed, "dropout", step, processes.rank, index))
            loss, part = self._objective.learn(engine, micro_batch.to(processes.device), batch)
            engine.backward(loss, is_last=index == len(batch.micro_batches) - 1)
            tally += part
        rate = self._schedule.rate_at(self._budget.done(progress))
        norm = engine.step(rate)
        tally, (stops, updates, norms) = tally.reduced(processes, self._stop.received, engine.was_updated, norm)
        assert updates in (0, processes.world_size), "some ranks have taken a step that others have not"
        # All ranks have the same norm.
        return StepResult(tally, rate, norms / processes.world_size, stops > 0)

    def _export(self, weights: Mapping[str, torch.Tensor], progress: Progress, after: Mapping[str, float]) -> None:
        require_finite(weights, after, self._inputs.recipe.path)
        encoder = storage.join(self._output.path, ENCODER_DIRECTORY)
        names = self._objective.export(encoder, weights)
        records = self._output.publish([f"{ENCODER_DIRECTORY}/{name}" for name in names])
        statistics = {
            **self._objective.statistics(encoder, progress, after, self._say),
            "metrics": [asdict(metric) for metric in self._objective.metrics],
            "steps": progress.step,
            "tokens": progress.tokens,
            "sequences": progress.sequences,
            "world_size": progress.world_size,
            PRECISION: self._precision,
        }
        write_manifest(self._directory, self._inputs.key.manifest(records, statistics, code_version()))
        complete(self._inputs.key, self._inputs.directory, self._say, self._config.keep_finished)
        self._output.discard()
        rate = progress.tokens / max(progress.seconds, 1e-9)
        self._say(f"complete: {progress.step} steps, {progress.tokens:,} tokens, {rate:,.0f} tokens/s in steps")
