"""Fine-tune an encoder: on GLUE, SQuAD, sequence tagging, and the word-order task made from held-out documents.

    clozeworks finetune recipe.toml [--tasks cola rte] [--encoder DIR | WORKSPACE | models:/NAME@ALIAS]

One process, or several under DeepSpeed's launcher. Each trial writes <workspace>/finetuning/<task>/<start>: model/ (a
Hugging Face directory), predictions/, metrics.jsonl and, last of all, manifest.json with the scores. Complete trials
are skipped.
"""

from __future__ import annotations

import argparse

from pipelines.commands.command_line import CommandParser
from pipelines.commands.lifeline import follow_lifeline
from pipelines.commands.recipe_arguments import add_recipe_arguments, add_restart_argument, recipe_from_arguments
from pipelines.contract.errors import InputError
from training.resuming.process_end import exit_code_of_rank, run_and_leave
from training.stages.sections import FinetuningSections
from training.trials.trial_plan import PlannedTrial, data_directory, planned_trials, require_inputs, trial_of

_EXAMPLE = "example: clozeworks finetune recipe.toml --tasks rte --set finetuning.glue_dir=glue"


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks finetune", description=__doc__.splitlines()[0] if __doc__ else None, epilog=_EXAMPLE
    )
    add_recipe_arguments(parser)
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks to train, instead of finetuning.tasks")
    parser.add_argument("--encoder", metavar="SOURCE", help="where to begin from, instead of finetuning.encoder")
    add_restart_argument(parser, "train complete trials anew; replaces each at its end")
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
    require_inputs(sections)
    planned = planned_trials(sections, parsed.restart is not None)
    if all(trial.difference() is None for trial in planned):
        print("finetuning: all trials are complete and up to date", flush=True)
        return 0
    _run(sections, planned)
    return 0


def _run(sections: FinetuningSections, planned: list[PlannedTrial]) -> None:
    # torch and DeepSpeed take seconds to load: not before it is known that there is something to do.
    from training.engine.processes import start_processes, stop_processes
    from training.finetuning.problem import Problem
    from training.tracking.flattening import numbers_of
    from training.tracking.trial_runs import TrialRuns
    from training.trials.trial import open_problem, run_trial

    processes = start_processes()
    try:
        runs = TrialRuns.from_environment() if processes.is_first else TrialRuns(None)
        problems: dict[tuple[str, str], Problem] = {}
        for each in planned:
            difference = processes.from_first(each.difference() if processes.is_first else None)
            if difference is None:
                continue
            if processes.is_first:
                print(f"finetuning: {each.task}/{each.start}: {difference}", flush=True)
                data_directory(sections, each.task)
            processes.barrier()
            trial = trial_of(sections, each.task, each.start, each.directory, each.key)
            read = (each.task, trial.vocabulary_directory)
            if read not in problems:
                folder = data_directory(sections, each.task)
                problems = {read: open_problem(each.task, sections.finetuning, folder, trial.vocabulary_directory)}
            with runs.trial(f"{each.task}/{each.start}", trial.directory, trial.key) as run:
                statistics = run_trial(trial, sections.finetuning, problems[read], processes, run.run_id)
                run.scores = numbers_of(statistics.to_json())
    finally:
        stop_processes()


if __name__ == "__main__":
    run_and_leave(lambda: exit_code_of_rank(main))
