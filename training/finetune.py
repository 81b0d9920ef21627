"""Fine-tune an encoder on GLUE tasks, and on the word-order task made from held-out documents.

    python -m training.finetune recipe.toml [--tasks cola rte] [--encoder DIR]

One process, no launcher. Each trial writes <workspace>/finetuning/<task>/<start>: model/ (a Hugging Face
BertForSequenceClassification), metrics.jsonl and, last of all, manifest.json with the scores. Complete trials are
skipped.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from pipelines import storage
from pipelines.contract import StageKey, require_manifest
from pipelines.lifeline import follow_lifeline
from pipelines.recipe import InputError, Recipe, add_recipe_arguments, exit_code_of, recipe_from_arguments
from training.config import WORD_ORDER, FinetuningConfig, ModelConfig
from training.process_end import run_and_leave
from training.stages import (
    DOCUMENTS,
    ENCODER_DIRECTORY,
    FINETUNING,
    PRETRAINED,
    PRETRAINING,
    RANDOM,
    VOCABULARY,
    code_version,
    finetuning_directory,
    finetuning_key,
    vocabulary_size,
    workspace_of,
)

DATA_DIRECTORY = "data"


@dataclass(frozen=True)
class _Planned:
    task: str
    start: str
    directory: str
    key: StageKey


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="training.finetune", description=__doc__.splitlines()[0] if __doc__ else None)
    add_recipe_arguments(parser)
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks to train, instead of finetuning.tasks")
    parser.add_argument("--encoder", metavar="DIR", help="Hugging Face BERT directory, instead of the workspace's own")
    parsed = parser.parse_args(arguments)
    if parsed.tasks:
        parsed.overrides.append(f"finetuning.tasks={list(parsed.tasks)!r}")
    follow_lifeline()
    recipe = recipe_from_arguments(parsed)
    config = recipe.section("finetuning", FinetuningConfig)
    if not config.tasks:
        raise InputError(f"{recipe.path}: finetuning.tasks is empty; name tasks there or with --tasks")
    planned = _planned(recipe, config, parsed.encoder)
    if not planned:
        print("finetuning: all trials are complete and up to date", flush=True)
        return 0
    _prepare_data(recipe, config, planned)
    _run(recipe, config, planned, parsed.encoder)
    return 0


def _planned(recipe: Recipe, config: FinetuningConfig, encoder: str | None) -> list[_Planned]:
    """The trials that are not complete yet."""
    workspace = workspace_of(recipe)
    require_manifest(storage.join(workspace, VOCABULARY), f"python -m pipelines.train_vocabulary {recipe.path}")
    if encoder is None:
        require_manifest(storage.join(workspace, PRETRAINING), f"deepspeed --module training.pretrain {recipe.path}")
    planned = []
    for task in config.tasks:
        for start in (PRETRAINED, RANDOM) if config.compare_with_random else (PRETRAINED,):
            directory = finetuning_directory(recipe, task, start)
            key = finetuning_key(recipe, task, start, encoder if start == PRETRAINED else None)
            if (difference := key.difference(directory)) is not None:
                print(f"finetuning: {task}/{start}: {difference}", flush=True)
                planned.append(_Planned(task, start, directory, key))
    return planned


def _prepare_data(recipe: Recipe, config: FinetuningConfig, planned: list[_Planned]) -> None:
    if not any(trial.task == WORD_ORDER for trial in planned):
        return
    from training.glue.word_order import prepare_word_order

    workspace = workspace_of(recipe)
    documents = storage.join(workspace, DOCUMENTS)
    manifest = require_manifest(documents, f"python -m pipelines.shard_corpus {recipe.path}")
    target = storage.join(workspace, FINETUNING, DATA_DIRECTORY)
    prepare_word_order(target, documents, manifest, config.word_order, code_version())


def _run(recipe: Recipe, config: FinetuningConfig, planned: list[_Planned], encoder: str | None) -> None:
    # torch and DeepSpeed take seconds to load: not before it is known that there is something to do.
    from training.engine import start_processes, stop_processes
    from training.finetuning import FinetuningRun, TaskData, Trial, architecture_of, load_task
    from training.glue.tasks import TASKS
    from training.text import TextEncoder

    workspace = workspace_of(recipe)
    own_vocabulary = storage.join(workspace, VOCABULARY)
    own_encoder = storage.join(workspace, PRETRAINING, ENCODER_DIRECTORY)
    processes = start_processes()
    try:
        data: dict[tuple[str, str], TaskData] = {}
        for trial in planned:
            if trial.start == RANDOM:
                source, vocabulary = None, own_vocabulary
                model, size = recipe.section("model", ModelConfig), vocabulary_size(own_vocabulary)
            else:
                source = vocabulary = encoder or own_encoder
                model, size = architecture_of(source)
            _require_length_fits(config, model, recipe)
            if (trial.task, vocabulary) not in data:
                folder = config.glue_dir
                if trial.task == WORD_ORDER:
                    folder = storage.join(workspace, FINETUNING, DATA_DIRECTORY)
                assert folder is not None
                data[trial.task, vocabulary] = load_task(
                    trial.task, folder, TextEncoder(vocabulary), config.max_seq_length
                )
            task = TASKS[trial.task]
            described = Trial(task, trial.start, trial.directory, trial.key, model, size, source, vocabulary)
            FinetuningRun(described, config, data[trial.task, vocabulary], processes).run()
    finally:
        stop_processes()


def _require_length_fits(config: FinetuningConfig, model: ModelConfig, recipe: Recipe) -> None:
    if config.max_seq_length > model.max_position_embeddings:
        raise InputError(
            f"{recipe.path}: finetuning.max_seq_length = {config.max_seq_length} exceeds the encoder's "
            f"{model.max_position_embeddings} positions; lower it"
        )


if __name__ == "__main__":
    run_and_leave(lambda: exit_code_of(main))
