"""Runs a trial: opens the problem, fine-tunes from an encoder, and writes model and manifest."""

from __future__ import annotations

import time
from dataclasses import replace

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest, write_manifest
from pipelines.contract.recipe import RunConfig
from pipelines.contract.workspace import FINETUNING, MODEL_DIRECTORY, code_version, vocabulary_size
from pipelines.results.builds import discard_build, finish_exchange, install_build, open_build
from pipelines.staging.staged import staged
from pipelines.statistics.training import TrialStatistics
from training.bert.config_file import read_config
from training.bert.huggingface import huggingface_config, write_model
from training.engine.processes import Processes
from training.finetuning.coverage import coverage_lines
from training.finetuning.loop import Beginning, Fitted, Fitting
from training.finetuning.problem import Problem, TaskInputs
from training.resuming.checkpointed_stage import lock_of_ranks, on_first
from training.resuming.result_checks import require_finite
from training.resuming.run_directory import RunDirectory
from training.settings.model import ModelConfig
from training.settings.tasks import load
from training.tracking.tracker import Tracker
from training.trials.trial import Trial

PREDICTIONS_DIRECTORY = "predictions"


def beginning_of(trial: Trial) -> Beginning:
    """The architecture and the initial weights of a trial; a remote encoder is staged.

    Raises:
        InputError: the encoder or the vocabulary cannot be read.
    """
    if trial.encoder_directory is None:
        assert trial.model is not None
        return Beginning(trial.model, vocabulary_size(trial.vocabulary_directory), None)
    directory = _local_encoder(trial.encoder_directory, trial.run)
    return Beginning(*read_config(directory), directory)


def _local_encoder(directory: str, run: RunConfig) -> str:
    """A local copy of the encoder of a stage; the directory itself if it is local."""
    if storage.is_local(directory):
        return directory
    stage, _, name = directory.rpartition("/")
    manifest = read_manifest(stage)
    if manifest is None:
        raise InputError(f"{stage}: no longer complete; build it again, and then fine-tune")
    names = [file.name for file in manifest.files if file.name.startswith(f"{name}/")]
    return storage.join(staged(stage, manifest, run, names).all(), name)


def open_problem(trial: Trial, folder: str | None) -> Problem:
    """Read and tokenize a trial's data; `folder` is the parent of the task's folder, if any.

    Raises:
        InputError: a file is missing or has a bad row.
    """
    inputs = TaskInputs(trial.task, trial.config, folder, trial.vocabulary_directory)
    problem: Problem = load(trial.config.family(trial.task).opener)(inputs)
    return problem


def run_trial(
    trial: Trial, beginning: Beginning, problem: Problem, processes: Processes, run_id: str | None = None
) -> TrialStatistics:
    """Train a trial and write its directory, the manifest last.

    Args:
        trial: what to train.
        beginning: the initial weights.
        problem: opened for its task and vocabulary.
        processes: the ranks that share each batch.
        run_id: MLflow run to log metrics to under their own names; None means the run of the environment, with the
            trial's name as prefix.

    Returns:
        The manifest's statistics.

    Raises:
        InputError: another process trains this trial, or its directory contains foreign files.
    """
    workspace, _, name = trial.directory.rpartition(f"/{FINETUNING}/")
    with lock_of_ranks(processes, workspace, f"{FINETUNING}/{name}"):
        return _run_locked(trial, beginning, problem, processes, run_id)


def _run_locked(
    trial: Trial, beginning: Beginning, problem: Problem, processes: Processes, run_id: str | None
) -> TrialStatistics:
    config = trial.config
    if config.dropout is not None:
        beginning = replace(beginning, model=_with_dropout(beginning.model, config.dropout))
    say = trial.say if processes.is_first else _silent
    build = RunDirectory(trial.directory, trial.run)

    def begin() -> None:
        # Local files of a killed attempt at a remote build.
        build.discard()
        finish_exchange(trial.directory)
        discard_build(trial.directory)
        open_build(trial.directory, trial.key)

    on_first(processes, begin)
    for line in coverage_lines(problem.coverage, config):
        say(line)
    fitting = Fitting(problem, beginning, config.fitting(trial.task), config, processes, say)
    started = time.monotonic()
    prefix = f"{trial.task}.{trial.start}." if run_id is None else ""
    with (
        build.followed_metrics(processes.is_first),
        Tracker(build.path, processes.is_first, prefix, -1, run_id=run_id) as tracker,
    ):
        fitted = fitting.run(tracker, storage.join(build.path, PREDICTIONS_DIRECTORY))
    statistics = TrialStatistics(
        task=trial.task,
        start=trial.start,
        metric=problem.metric,
        score=fitted.metrics[problem.metric],
        dev=fitted.metrics,
        best_epoch=fitted.epoch,
        seconds=round(time.monotonic() - started, 1),
        text=problem.coverage,
        **fitted.more.to_json(),
    )

    def write() -> None:
        require_finite(fitted.state, fitted.metrics, f"{trial.task}/{trial.start}")
        _write(trial, beginning, problem, fitted, statistics, build)
        build.discard()

    on_first(processes, write)
    say(f"complete: best epoch {fitted.epoch}, {problem.metric} {statistics.score:.4f}, {statistics.seconds} s")
    return statistics


def _write(
    trial: Trial,
    beginning: Beginning,
    problem: Problem,
    fitted: Fitted,
    statistics: TrialStatistics,
    build: RunDirectory,
) -> None:
    architecture, more = problem.huggingface()
    config = huggingface_config(beginning.model, beginning.vocab_size, architecture, **more)
    names = write_model(storage.join(build.path, MODEL_DIRECTORY), fitted.state, config, trial.vocabulary_directory)
    files = [f"{MODEL_DIRECTORY}/{name}" for name in names]
    files += [name for name in storage.list_files(build.path) if name.startswith(f"{PREDICTIONS_DIRECTORY}/")]
    write_manifest(build.uri, trial.key.manifest(build.publish(files), statistics, code_version()))
    install_build(trial.directory, trial.key)


def _with_dropout(model: ModelConfig, dropout: float) -> ModelConfig:
    return model.model_copy(update={"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout})


def _silent(line: str) -> None:
    """Print nothing, on ranks other than the first."""
