"""Fine-tune an encoder: on GLUE, SQuAD, sequence tagging, and the word-order task made from held-out documents.

    python -m training.finetune recipe.toml [--tasks cola rte] [--encoder DIR | WORKSPACE | models:/NAME@ALIAS]

One process, or several under DeepSpeed's launcher. Each trial writes <workspace>/finetuning/<task>/<start>: model/ (a
Hugging Face directory), predictions/, metrics.jsonl and, last of all, manifest.json with the scores. Complete trials
are skipped.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.commands.command_line import CommandParser
from pipelines.commands.lifeline import follow_lifeline
from pipelines.commands.recipe_arguments import add_recipe_arguments, add_restart_argument, recipe_from_arguments
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey, require_manifest
from pipelines.contract.recipe import Recipe
from pipelines.contract.workspace import (
    DATA_DIRECTORY,
    DOCUMENTS,
    ENCODER_DIRECTORY,
    FINETUNING,
    MODEL_DIRECTORY,
    PRETRAINED,
    PRETRAINING,
    RANDOM,
    VOCABULARY,
    code_version,
    vocabulary_size,
    workspace_of,
)
from pipelines.results.verification import require_stage
from training.resuming.process_end import exit_code_of_rank, run_and_leave
from training.settings.finetuning import BEGIN_FROM_MNLI, MNLI, WORD_ORDER, FinetuningConfig
from training.settings.pretraining import ModelConfig
from training.stages.pretraining import finetuning_directory, finetuning_key

if TYPE_CHECKING:
    from training.trials.trial import Trial

_EXAMPLE = "example: python -m training.finetune recipe.toml --tasks rte --set finetuning.glue_dir=glue"


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m training.finetune", description=__doc__.splitlines()[0] if __doc__ else None, epilog=_EXAMPLE
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
    recipe = recipe_from_arguments(parsed)
    config = recipe.section("finetuning", FinetuningConfig)
    if not config.tasks:
        raise InputError(f"{recipe.path}: finetuning.tasks is empty; name tasks there or with --tasks")
    require_inputs(recipe, config)
    planned = _planned(recipe, config, parsed.restart is not None)
    if all(trial.difference() is None for trial in planned):
        print("finetuning: all trials are complete and up to date", flush=True)
        return 0
    _run(recipe, config, planned)
    return 0


@dataclass(frozen=True)
class _Planned:
    recipe: Recipe
    task: str
    start: str
    restart: bool = False

    @property
    def directory(self) -> str:
        return finetuning_directory(self.recipe, self.task, self.start)

    @property
    def key(self) -> StageKey:
        """Asked for when the trial's turn comes: it may begin from what an earlier trial writes."""
        return finetuning_key(self.recipe, self.task, self.start)

    def difference(self) -> str | None:
        return self.key.difference(self.directory) or ("--restart" if self.restart else None)


def _planned(recipe: Recipe, config: FinetuningConfig, restart: bool) -> list[_Planned]:
    """All trials of the recipe, MNLI's first where others begin from it."""
    tasks = sorted(config.tasks, key=lambda task: task != MNLI) if config.mnli_first else config.tasks
    starts = (PRETRAINED, RANDOM) if config.compare_with_random else (PRETRAINED,)
    return [_Planned(recipe, task, start, restart) for task in tasks for start in starts]


def require_inputs(recipe: Recipe, config: FinetuningConfig) -> None:
    """Check that the stages which fine-tuning reads are complete, and that their files are what the manifests state.

    Raises:
        InputError: one is missing, and the message names its command; or a file is damaged.
    """
    workspace = workspace_of(recipe)
    if config.encoder is None or config.compare_with_random:
        require_stage(workspace, VOCABULARY, f"python -m pipelines.train_vocabulary {recipe.path}")
    if config.encoder is None:
        require_stage(workspace, PRETRAINING, f"deepspeed --module training.pretrain {recipe.path}")
    if WORD_ORDER in config.tasks:
        require_stage(
            workspace,
            DOCUMENTS,
            f"python -m pipelines.shard_corpus {recipe.path}",
            lambda file: file.name.startswith("heldout-"),
        )


def data_directory(recipe: Recipe, config: FinetuningConfig, task: str) -> str | None:
    """The folder that a task's own folder lies in; the word-order task's is made here where it is not there yet."""
    if task != WORD_ORDER:
        return config.glue_dir
    from training.glue.word_order import prepare_word_order

    workspace = workspace_of(recipe)
    documents = storage.join(workspace, DOCUMENTS)
    manifest = require_manifest(documents, DOCUMENTS, f"python -m pipelines.shard_corpus {recipe.path}")
    target = storage.join(workspace, FINETUNING, DATA_DIRECTORY)
    prepare_word_order(target, documents, manifest, config.word_order, code_version())
    return target


def trial_of(recipe: Recipe, config: FinetuningConfig, task: str, start: str, directory: str, key: StageKey) -> Trial:
    """Find the weights and the vocabulary that a trial begins from.

    Raises:
        InputError: the encoder cannot be read.
    """
    from training.trials.trial import Trial, architecture_of

    workspace = workspace_of(recipe)
    if start == RANDOM:
        vocabulary = storage.join(workspace, VOCABULARY)
        model = recipe.section("model", ModelConfig)
        return Trial(task, start, directory, key, model, vocabulary_size(vocabulary), None, vocabulary)
    if config.mnli_first and task in BEGIN_FROM_MNLI:
        source = storage.join(finetuning_directory(recipe, MNLI, PRETRAINED), MODEL_DIRECTORY)
    elif config.encoder is not None:
        from training.stages.encoders import encoder_directory

        source = encoder_directory(config.encoder)
    else:
        source = storage.join(workspace, PRETRAINING, ENCODER_DIRECTORY)
    return Trial(task, start, directory, key, *architecture_of(source), source, source)


def _run(recipe: Recipe, config: FinetuningConfig, planned: list[_Planned]) -> None:
    # torch and DeepSpeed take seconds to load: not before it is known that there is something to do.
    from training.engine.training_engine import start_processes, stop_processes
    from training.finetuning.loop import Problem
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
                data_directory(recipe, config, each.task)
            processes.barrier()
            trial = trial_of(recipe, config, each.task, each.start, each.directory, each.key)
            read = (each.task, trial.vocabulary_directory)
            if read not in problems:
                folder = data_directory(recipe, config, each.task)
                problems = {read: open_problem(each.task, config, folder, trial.vocabulary_directory)}
            with runs.trial(f"{each.task}/{each.start}", trial.directory, trial.key) as run:
                statistics = run_trial(trial, config, problems[read], processes, run.run_id)
                run.scores = numbers_of(statistics)
    finally:
        stop_processes()


if __name__ == "__main__":
    run_and_leave(lambda: exit_code_of_rank(main))
