"""Fine-tune with many settings and seeds in parallel, and compare them: the grids of the BERT paper, or others.

    clozeworks sweep recipe.toml [--tasks cola rte] [--encoder DIR | WORKSPACE[@step-N] | models:/NAME@ALIAS]

Each trial writes <workspace>/finetuning/<task>/sweep/<name> as clozeworks finetune does, next to summary.json (each
point of the grid: median, mean, standard deviation, best) and best.json (the best trial and its model). Complete
trials are skipped, so a killed sweep is resumed by running it again.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import signal
import sys
from collections.abc import Callable

from pipelines.commands.command_line import CommandParser
from pipelines.commands.cores import available_cores
from pipelines.commands.gpus import ACCELERATOR_VARIABLE
from pipelines.commands.lifeline import follow_lifeline
from pipelines.commands.process_exit import run_and_leave
from pipelines.commands.recipe_arguments import add_recipe_arguments, recipe_from_arguments
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.workspace import FINETUNING
from training.stages.finetuning import sweep_directory
from training.stages.sections import FinetuningSections
from training.tracking.trial_runs import SweepRun
from training.trials.side_by_side import run_side_by_side, sole_sweep, worker_environments
from training.trials.sweep_plan import plan
from training.trials.sweep_results import TaskSweep, comparison, table_of
from training.trials.trial import Trial
from training.trials.trial_plan import data_directory, require_inputs

_EXAMPLE = "example: clozeworks sweep recipe.toml --tasks rte --set finetuning.sweep.seeds=5"
_NOT_ALL_COMPLETE = 1


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks sweep", description=__doc__.splitlines()[0] if __doc__ else None, epilog=_EXAMPLE
    )
    add_recipe_arguments(parser)
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks to sweep, instead of finetuning.tasks")
    parser.add_argument("--encoder", metavar="SOURCE", help="encoder to fine-tune, instead of finetuning.encoder")
    parser.add_argument(
        "--trials",
        nargs="+",
        metavar="TASK/NAME",
        help="train these trials only, in this process, and write no comparison; other nodes may train others",
    )
    parser.add_argument("--worker", type=int, metavar="FILE", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    follow_lifeline()
    if parsed.encoder:
        parsed.overrides.append(f"finetuning.encoder={json.dumps(parsed.encoder)}")
    sections, tasks = _read(parsed)
    if parsed.worker is not None:
        return _work(sections, tasks, parsed.worker)
    if parsed.trials:
        _train_here(sections, tasks, parsed.trials)
        return 0
    swept = sections.finetuning.model_copy(update={"tasks": tasks, "compare_with_random": False})
    require_inputs(dataclasses.replace(sections, finetuning=swept))
    command = [sys.executable, "-m", "training.sweep", *(sys.argv[1:] if arguments is None else arguments), "--worker"]
    with sole_sweep(sections.workspace) as lock:
        return _sweep(sections, tasks, command, lock)


def _read(parsed: argparse.Namespace) -> tuple[FinetuningSections, tuple[str, ...]]:
    """The recipe's sections, and the tasks; `--tasks` are added to the recipe's own for checks that need all."""
    recipe = recipe_from_arguments(parsed)
    if parsed.tasks:
        own = recipe.tables.get("finetuning", {}).get("tasks", [])
        names = list(dict.fromkeys([*parsed.tasks, *(own if isinstance(own, list) else [])]))
        parsed.overrides.append(f"finetuning.tasks={json.dumps(names)}")
        recipe = recipe_from_arguments(parsed)
    sections = FinetuningSections.of(recipe)
    tasks = tuple(parsed.tasks or sections.finetuning.tasks)
    if not tasks:
        raise InputError(f"{recipe.path}: finetuning.tasks is empty; name tasks there or with --tasks")
    return sections, tasks


def _sweep(sections: FinetuningSections, tasks: tuple[str, ...], command: list[str], lock: int) -> int:
    root, config = storage.join(sections.workspace, FINETUNING), sections.finetuning
    sweeps: dict[str, TaskSweep] = {}
    for task in tasks:
        data_directory(sections, task)
        trials = plan(sections, task)
        directory, keeps_all = sweep_directory(sections.workspace, task), config.sweep.keep_models == "all"
        sweep = sweeps[task] = TaskSweep(directory, trials, keeps_all, config.mnli_first)
        sweep.settle()
        print(f"sweep: {task}: {len(trials)} trials, {len(sweep.complete)} complete", flush=True)

    def enter(trial: Trial, problem: str | None) -> None:
        sweep = sweeps[trial.task]
        sweep.enter(trial, problem)
        found = sweep.problems.get(trial) or f"{sweep.metric} {sweep.score(trial):.4f}"
        print(f"sweep: {len(sweep.complete)} of {len(sweep.trials)} complete; {trial.label}: {found}", flush=True)

    run: SweepRun | None = None
    status, tried = "KILLED", set[Trial]()
    try:
        while todo := [trial for sweep in sweeps.values() for trial in sweep.to_train(tried)]:
            tried |= set(todo)
            run = run or SweepRun(root)
            gpus, cores = _visible_gpus(), available_cores()
            environments = worker_environments(len(todo), config.sweep.side_by_side, gpus, cores)
            print(f"sweep: {len(todo)} trials to train, {len(environments)} in parallel", flush=True)
            own = run.environment()
            run_side_by_side(todo, [own | each for each in environments], command, lock, enter)
        problems = {trial: problem for sweep in sweeps.values() for trial, problem in sweep.problems.items()}
        status = "FAILED" if problems else "FINISHED"
    finally:
        table = table_of(list(sweeps.values()))
        # Log the comparison to the run of the environment even if there was nothing to train.
        run = run or SweepRun(root, is_new=False)
        outcomes = {name: facts for sweep in sweeps.values() for name, facts in sweep.outcomes.items()}
        run.end(status, outcomes, comparison(list(sweeps.values())), table)
    print(table, end="", flush=True)
    return _told(problems, tried)


def _told(problems: dict[Trial, str], tried: set[Trial]) -> int:
    """Exit code of the sweep; prints one line on stderr if trials failed."""
    if not problems:
        return 0
    first, problem = next(iter(problems.items()))
    others = ", ".join(trial.label for trial in list(problems)[1:])
    print(
        f"error: sweep: {len(problems)} of {len(tried)} trials failed: {first.label}: {problem}"
        f"{f'; also {others}' if others else ''}; run the command again to retry them",
        file=sys.stderr,
        flush=True,
    )
    return _NOT_ALL_COMPLETE


def _visible_gpus() -> list[str]:
    """Names of the GPUs for CUDA_VISIBLE_DEVICES."""
    if os.environ.get(ACCELERATOR_VARIABLE) == "cpu":
        return []
    # Takes seconds to import, so only if there is something to train.
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def _work(sections: FinetuningSections, tasks: tuple[str, ...], answers: int) -> int:
    """Train the trials whose labels arrive on standard input; see `side_by_side.run_side_by_side`."""
    # Ctrl-C reaches all processes of a terminal; the first one stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    train = _trainer(sections, tasks)
    for line in iter(sys.stdin.readline, ""):
        problem: str | None = None
        try:
            train(line.strip())
        except InputError as error:
            problem = str(error)
        os.write(answers, json.dumps(problem).encode() + b"\n")
        # DeepSpeed's engine and hooks form cycles; free its memory before the next one is created.
        gc.collect()
    return 0


def _train_here(sections: FinetuningSections, tasks: tuple[str, ...], labels: list[str]) -> None:
    """Train the trials with these labels as far as they are incomplete.

    Raises:
        InputError: a label is not that of a trial, or an input is missing.
    """
    named = {label.partition("/")[0] for label in labels}
    tasks = tuple(task for task in tasks if task in named) or tasks
    swept = sections.finetuning.model_copy(update={"tasks": tasks, "compare_with_random": False})
    require_inputs(dataclasses.replace(sections, finetuning=swept))
    train = _trainer(sections, tasks, skips_complete=True)
    for label in labels:
        train(label)
        gc.collect()


def _trainer(
    sections: FinetuningSections, tasks: tuple[str, ...], skips_complete: bool = False
) -> Callable[[str], None]:
    """A function that trains the trial of a label; it reads a task's data once for all trials in succession."""
    from training.engine.processes import start_processes
    from training.finetuning.loop import Beginning
    from training.finetuning.problem import Problem
    from training.tracking.flattening import numbers_of
    from training.tracking.trial_runs import TrialRuns
    from training.trials.running import beginning_of, open_problem, run_trial

    config = sections.finetuning
    folders = {task: data_directory(sections, task) for task in tasks}
    planned = {trial.label: trial for task in tasks for trial in plan(sections, task)}
    runs, processes = TrialRuns.from_environment(), start_processes()
    opened: dict[str, tuple[Beginning, Problem]] = {}

    def train(label: str) -> None:
        nonlocal opened
        if label not in planned:
            raise InputError(f"--trials {label}: no trial of this sweep; the first one is {next(iter(planned))}")
        each = planned[label]
        if skips_complete and each.difference() is None:
            print(f"sweep: {label} is complete", flush=True)
            return
        if each.task not in opened:
            opened = {each.task: (beginning_of(each), open_problem(each, folders[each.task]))}
        beginning, learnt = opened[each.task]
        with runs.trial(each.label, each.directory, each.key, {"mnli_first": config.mnli_first}) as run:
            statistics = run_trial(each, beginning, learnt, processes, run.run_id)
            run.scores = numbers_of(statistics.to_json())

    return train


if __name__ == "__main__":
    run_and_leave(lambda: exit_code_of(main))
