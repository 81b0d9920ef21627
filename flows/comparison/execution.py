"""Runs a study: checks all runs first, builds what they share once, leaves out what fails."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from threading import Lock

from flows.comparison.results import Comparison, RunResult, compared, result_of
from flows.comparison.shared_stages import SharedStages, build_stage
from flows.comparison.study_file import Run, Study
from flows.comparison.tracking import StudyTracking
from flows.launching.single_node import RANKS_WITHOUT_GPU
from flows.parameters.whole_recipe import WholeRecipe
from flows.running.plan import (
    Stage,
    finetuning_stages,
    preprocessing_stages,
    pretraining_stage,
    require_initial_encoder,
    require_task_data,
)
from pipelines.commands.cores import available_cores, threads_of_each
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.recipe import read_recipe
from pipelines.contract.workspace import FINETUNING
from pipelines.statistics.metrics import Metric
from training.settings.finetuning import FinetuningConfig

STAGES_DIRECTORY, RUNS_DIRECTORY = "stages", "runs"

Say = Callable[[str], None]
Publish = Callable[[Comparison], Mapping[str, str]]
Train = Callable[[], RunResult]
Enclose = Callable[[Run, Train], RunResult]


def run_study(study: Study, say: Say, publish: Publish, enclose: Enclose) -> Comparison:
    """Train every variant with every seed, except for what is complete, and compare them.

    Args:
        study: what to compare.
        say: prints a line.
        publish: writes the files of the comparison; returns them by name, for MLflow.
        enclose: calls the training of a run, as a task of Prefect; in a thread with a copy of this one's context.

    Raises:
        InputError: a recipe is wrong or inputs are missing, before anything is built.
    """
    require_runs(study)
    runs = study.runs()
    tracking = StudyTracking(whole_study(study))
    with tracking.parent() as parent_run_id:
        results, metrics = _train_all(study, runs, tracking, parent_run_id, say, enclose)
        comparison = compared(study, results, metrics)
        tracking.log_files(parent_run_id, publish(comparison))
    return comparison


def require_runs(study: Study) -> None:
    """Check the recipes and inputs of all runs.

    Raises:
        InputError: one is wrong or missing.
    """
    if not storage.is_local(study.config.workspace):
        raise InputError(
            f"{study.path}: study.workspace = {study.config.workspace} is not local; runs share stages by links, so "
            "give a directory of this machine"
        )
    for run in study.runs():
        whole = _whole(study, run, run_directory(study, run))
        require_task_data(whole)
        if only_fine_tunes(whole.finetuning):
            for stage in finetuning_stages(whole):
                # Its key has the digest of the encoder, which must exist.
                stage.key_digest()
        else:
            require_initial_encoder(whole)


def _train_all(
    study: Study, runs: Sequence[Run], tracking: StudyTracking, parent_run_id: str, say: Say, enclose: Enclose
) -> tuple[list[RunResult], list[Metric]]:
    shared = SharedStages(os.path.join(study.config.workspace, STAGES_DIRECTORY))
    metrics: list[Metric] = []
    guard = Lock()

    def train(number: int, run: Run) -> RunResult:
        say(f"[{number}/{len(runs)}] {run.label}")
        try:
            with tracking.child(run, parent_run_id) as run_id:
                environment = {**tracking.environment(run_id), **threads_of(study, run)}
                result, measured = _train(study, run, shared, environment, lambda line: say(f"{run.label}: {line}"))
                tracking.log_result(run_id, result)
        except (InputError, RuntimeError) as error:
            problem = str(error).partition("\n")[0]
            say(f"[{number}/{len(runs)}] {run.label}: FAILED: {problem}")
            return RunResult(run, problem=problem)
        with guard:
            metrics.extend(measured)
        say(f"[{number}/{len(runs)}] {run.label}: complete")
        return result

    enclosed = [partial(enclose, run, partial(train, number, run)) for number, run in enumerate(runs, start=1)]
    if study.config.parallel_runs == 1:
        # In the flow's own thread, where cancelling reaches the end of a stage's process.
        return [one() for one in enclosed], metrics
    with ThreadPoolExecutor(study.config.parallel_runs) as pool:
        futures = [pool.submit(copy_context().run, one) for one in enclosed]
        return [future.result() for future in futures], metrics


def whole_study(study: Study) -> WholeRecipe:
    """A recipe of the study with the study's name and workspace, which decide where it is tracked.

    Raises:
        InputError: the first recipe of the study is wrong.
    """
    named = f"run.name={json.dumps(study.config.name)}"
    return _whole(study, study.runs()[0], study.config.workspace, named)


def threads_of(study: Study, run: Run) -> dict[str, str]:
    """Each rank's share of the cores, as the variable that training takes it from; the user's own value is kept."""
    parallel_runs = study.config.parallel_runs
    if parallel_runs == 1:
        return {}
    whole = _whole(study, run, run_directory(study, run))
    trained = whole.finetuning if only_fine_tunes(whole.finetuning) else whole.pretraining
    ranks = trained.ranks or RANKS_WITHOUT_GPU
    return threads_of_each(parallel_runs * ranks, available_cores())


def only_fine_tunes(finetuning: FinetuningConfig) -> bool:
    """Whether a run fine-tunes an encoder that exists: then nothing is preprocessed or pre-trained.

    Weights drawn at random, for comparison, need the vocabulary and architecture of a workspace.
    """
    return finetuning.encoder is not None and not finetuning.compare_with_random


def run_directory(study: Study, run: Run) -> str:
    """The workspace of a run."""
    name = re.sub(r"[^A-Za-z0-9._=+-]+", "_", run.variant)
    return os.path.join(study.config.workspace, RUNS_DIRECTORY, name, str(run.seed))


def _train(
    study: Study, run: Run, shared: SharedStages, environment: Mapping[str, str], say: Say
) -> tuple[RunResult, list[Metric]]:
    own = run_directory(study, run)
    opened = partial(_opened, study, run)
    shared.build(opened, own, environment, say)
    whole, stages = opened(own)
    for stage in finetuning_stages(whole):
        build_stage(whole, stage, environment, say)
    return result_of(run, whole, stages)


def _opened(study: Study, run: Run, workspace: str) -> tuple[WholeRecipe, list[Stage]]:
    whole = _whole(study, run, workspace)
    only = only_fine_tunes(whole.finetuning)
    shared = [] if only else [*preprocessing_stages(whole), pretraining_stage(whole)]
    return whole, [*shared, *finetuning_stages(whole)]


def _whole(study: Study, run: Run, workspace: str, *more: str) -> WholeRecipe:
    overrides = [*run.overrides, f"run.workspace={json.dumps(workspace)}", *more]
    recipe = read_recipe(study.base, overrides)
    only = only_fine_tunes(recipe.section(FINETUNING, FinetuningConfig))
    return WholeRecipe.check(recipe, needs_corpus=not only)
