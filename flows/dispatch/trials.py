"""Fine-tuning and sweeps by single trials: the stages of a sweep and of one trial, and their order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from flows.launching import single_node
from flows.parameters.whole_recipe import WholeRecipe
from flows.running import plan as stages
from flows.running.outcomes import StageOutcome
from flows.running.plan import Stage, StageOutput
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey
from pipelines.contract.workspace import FINETUNING, PRETRAINED
from training.settings.glue import MNLI
from training.stages.finetuning import SWEEP, finetuning_key, sweep_directory, sweep_trials

BEST_NAME = "best.json"
SWEEP_VERSION = 1


@dataclass(frozen=True)
class SweptTask(StageOutput):
    """The sweep of one task: complete if its trials are, and the comparison names the best of them."""

    trials: Callable[[], list[StageOutput]] = list

    def difference(self) -> str | None:
        for trial in self.trials():
            if reason := trial.difference():
                return f"{trial.name}: {reason}"
        best = _best(self.directory)
        if best is None or not best["is_final"]:
            return f"{self.name}: the comparison of the trials is not complete"
        return None if best["model"] else f"{self.name}: the weights of the best trial are missing"


def sweep_stage(whole: WholeRecipe) -> Stage | None:
    """The sweep of a recipe with a section [finetuning.sweep]; None without one, or without tasks.

    Raises:
        InputError: a file of a task is missing or has a bad row.
    """
    if SWEEP not in whole.recipe.tables.get(FINETUNING, {}) or not whole.finetuning.tasks:
        return None
    outputs = tuple(_swept(whole, task) for task in whole.finetuning.tasks)
    command = partial(stages.python_module, whole, "training.sweep")
    return Stage(SWEEP, outputs, command, single_node.environment, is_restartable=False)


def tuning_stages(whole: WholeRecipe) -> list[Stage]:
    """All stages of the flow that fine-tunes: the recipe's trials, then its sweep."""
    sweep = sweep_stage(whole)
    return [*stages.finetuning_stages(whole), *([sweep] if sweep is not None else [])]


def _swept(whole: WholeRecipe, task: str) -> SweptTask:
    sections = stages.finetuning_sections(whole)

    @cache  # hashes the data of the task
    def trials() -> list[StageOutput]:
        with stages.registry_of(whole):
            key = finetuning_key(sections, task, PRETRAINED)
        return [
            StageOutput(f"{task}/{SWEEP}/{each.name}", each.directory, partial(_itself, each.key))
            for each in sweep_trials(sections, task, key)
        ]

    def key() -> StageKey:
        keys = {trial.name: trial.key() for trial in trials()}
        inputs = next(iter(keys.values())).inputs
        return StageKey(SWEEP, SWEEP_VERSION, {name: each.config for name, each in keys.items()}, inputs)

    return SweptTask(task, sweep_directory(sections.workspace, task), key, BEST_NAME, trials)


def _itself(key: StageKey) -> StageKey:
    return key


def trials_of(stage: Stage) -> list[StageOutput]:
    """The trials that a stage of fine-tuning or a sweep consists of."""
    return [
        trial for output in stage.outputs for trial in (output.trials() if isinstance(output, SweptTask) else [output])
    ]


def in_order(whole: WholeRecipe, trials: list[StageOutput]) -> list[list[StageOutput]]:
    """Groups of trials that may be trained at the same time: that on MNLI first, if others start from its model."""
    first = [trial for trial in trials if whole.finetuning.mnli_first and trial.name == f"{MNLI}/{PRETRAINED}"]
    return [group for group in (first, [trial for trial in trials if trial not in first]) if group]


def trial_stage(whole: WholeRecipe, label: str) -> Stage:
    """The stage that trains one trial: `TASK/START`, or `TASK/sweep/NAME` of a sweep.

    Raises:
        InputError: the recipe has no such trial, or a file of its task is missing.
    """
    task, _, name = label.partition("/")
    own_name = name.removeprefix(f"{SWEEP}/")
    sweep = sweep_stage(whole) if own_name != name else None
    for stage in [sweep] if sweep is not None else stages.finetuning_stages(whole, as_own_run=True):
        outputs = tuple(trial for trial in trials_of(stage) if trial.name == label)
        if outputs:
            command = partial(_command_of_trial, stage, f"{task}/{own_name}")
            return replace(stage, name=label, outputs=outputs, command=command, is_timed=False)
    raise InputError(f"{whole.recipe.path}: {label!r} is no trial of this recipe; name TASK/START or TASK/sweep/NAME")


def _command_of_trial(stage: Stage, name: str) -> list[str]:
    return [*stage.command(), "--trials", name]


def with_best_trials(outcome: StageOutcome) -> StageOutcome:
    """The outcome of a sweep with the directory of each task's best trial, as `TASK/sweep`; others unchanged."""
    if outcome.stage != SWEEP:
        return outcome
    best = {task: _best(directory) for task, directory in outcome.directories.items()}
    directories = {
        f"{task}/{SWEEP}": storage.join(outcome.directories[task], found["trial"])
        for task, found in best.items()
        if found is not None
    }
    return outcome.model_copy(update={"directories": directories})


def _best(directory: str) -> dict[str, Any] | None:
    """The comparison's result; None if no sweep has written one."""
    uri = storage.join(directory, BEST_NAME)
    if storage.file_size_bytes(uri) is None:
        return None
    found: dict[str, Any] = json.loads(storage.read_bytes(uri))
    return found
