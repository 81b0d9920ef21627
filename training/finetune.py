"""Fine-tune an encoder: on your own tables, GLUE, SQuAD, sequence tagging, and a word-order task.

    clozeworks finetune recipe.toml [--tasks cola rte] [--encoder DIR | WORKSPACE[@step-N] | models:/NAME@ALIAS]

One process, or several under DeepSpeed's launcher. Each trial writes <workspace>/finetuning/<task>/<start>: model/ (a
Hugging Face directory), predictions/, metrics.jsonl and, last of all, manifest.json with the scores. Complete trials
are skipped. Tables with the user's own labels are sections [[finetuning.tables]] of the recipe; all of them are trained
if neither finetuning.tasks nor --tasks names some.
"""

from __future__ import annotations

import argparse
import gc

from pipelines.commands.command_line import CommandParser
from pipelines.commands.lifeline import follow_lifeline
from pipelines.commands.process_exit import run_and_leave
from pipelines.commands.recipe_arguments import add_recipe_arguments, add_restart_argument, recipe_from_arguments
from pipelines.contract.errors import InputError
from training.resuming.process_end import exit_code_of_rank
from training.stages.finetuning import require_task_data
from training.stages.sections import FinetuningSections
from training.trials.trial import Trial
from training.trials.trial_plan import data_directory, planned_trials, require_inputs, trial_of

_EXAMPLE = "example: clozeworks finetune recipe.toml --tasks rte --set finetuning.glue_dir=glue"


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks finetune", description=__doc__.splitlines()[0] if __doc__ else None, epilog=_EXAMPLE
    )
    add_recipe_arguments(parser)
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks to train, instead of finetuning.tasks")
    parser.add_argument("--encoder", metavar="SOURCE", help="encoder to fine-tune, instead of finetuning.encoder")
    parser.add_argument(
        "--trials",
        nargs="+",
        metavar="TASK/START",
        help="train these trials only, such as rte/pretrained; other nodes may train others",
    )
    add_restart_argument(parser, "train complete trials again; replaces each at its end")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher passes it
    parsed = parser.parse_args(arguments)
    if parsed.tasks:
        parsed.overrides.append(f"finetuning.tasks={list(parsed.tasks)!r}")
    if parsed.encoder:
        parsed.overrides.append(f"finetuning.encoder={parsed.encoder!r}")
    follow_lifeline()
    sections = FinetuningSections.of(recipe_from_arguments(parsed))
    if not sections.finetuning.tasks:
        raise InputError(f"{sections.recipe.path}: finetuning.tasks is empty; name tasks there or with --tasks")
    left_out = [table.name for table in sections.finetuning.tables if table.name not in sections.finetuning.tasks]
    if left_out:
        print(
            f"finetuning: tables that tasks does not name, and that are not trained: {', '.join(left_out)}", flush=True
        )
    require_inputs(sections)
    restart = parsed.restart is not None
    planned = _chosen_trials(sections, parsed.trials)
    if all(_difference(trial_of(sections, *each), restart) is None for each in planned):
        print("finetuning: all trials are complete and up to date", flush=True)
        return 0
    # Of all tasks, before the first one is trained.
    require_task_data(sections.finetuning)
    _run(sections, planned, restart)
    return 0


def _chosen_trials(sections: FinetuningSections, labels: list[str] | None) -> list[tuple[str, str]]:
    """Task and start of the trials with these labels; of all without labels.

    Raises:
        InputError: a label is not that of a trial.
    """
    planned = {f"{task}/{start}": (task, start) for task, start in planned_trials(sections.finetuning)}
    for label in labels or ():
        if label not in planned:
            raise InputError(f"--trials {label}: not a trial of this recipe; there are: {', '.join(planned)}")
    return [each for label, each in planned.items() if labels is None or label in labels]


def _difference(trial: Trial, restart: bool) -> str | None:
    return trial.difference() or ("--restart" if restart else None)


def _run(sections: FinetuningSections, planned: list[tuple[str, str]], restart: bool) -> None:
    # torch and DeepSpeed take seconds to load: only if there is something to do.
    from training.engine.processes import start_processes, stop_processes
    from training.finetuning.problem import Problem
    from training.tracking.flattening import numbers_of
    from training.tracking.trial_runs import TrialRuns
    from training.trials.running import beginning_of, open_problem, run_trial

    processes = start_processes()
    try:
        runs = TrialRuns.from_environment() if processes.is_first else TrialRuns(None)
        problems: dict[tuple[str, str], Problem] = {}
        for task, start in planned:
            trial = trial_of(sections, task, start)
            difference = processes.from_first(_difference(trial, restart) if processes.is_first else None)
            if difference is None:
                continue
            if processes.is_first:
                trial.say(difference)
                data_directory(sections, task)
            processes.barrier()
            beginning, read = beginning_of(trial), (task, trial.vocabulary_directory)
            if read not in problems:
                problems = {read: open_problem(trial, data_directory(sections, task))}
            with runs.trial(trial.label, trial.directory, trial.key) as run:
                statistics = run_trial(trial, beginning, problems[read], processes, run.run_id)
                run.scores = numbers_of(statistics.to_json())
            # DeepSpeed's engine is a cycle of objects, with the model and the optimizer's state.
            gc.collect()
    finally:
        stop_processes()


if __name__ == "__main__":
    run_and_leave(lambda: exit_code_of_rank(main))
