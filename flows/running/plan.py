"""The stages of a run: the command that builds each, where its output is stored, and how completeness is decided.

This is the only module of flows that knows the commands and keys of `pipelines` and `training`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from flows.launching import single_node
from flows.launching.job import Job, recipe_arguments
from flows.launching.launchers import launcher_of
from flows.parameters.whole_recipe import WholeRecipe
from flows.tracking.stores import tracking_uri
from pipelines.commands.process_start import command_of
from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, digest_of, read_manifest
from pipelines.contract.workspace import (
    DISTILLATION,
    DOCUMENTS,
    EXAMPLES,
    FINETUNING,
    MANIFEST_NAME,
    PRETRAINED,
    PRETRAINING,
    RANDOM,
    VOCABULARY,
    workspace_of,
)
from pipelines.results.marks import is_open
from pipelines.stage_keys import documents_key, examples_key, vocabulary_key
from training.stages import finetuning
from training.stages import pretraining as training
from training.stages.continuing import Place, possible_continuation
from training.stages.distillation import distillation_inputs
from training.stages.initial_encoder import continued_model, resolved_encoder
from training.stages.origins import CONTINUED_FROM
from training.stages.sections import DistillationSections, FinetuningSections, PretrainingSections


@dataclass(frozen=True)
class StageOutput:
    """A directory that a stage completes by a manifest, and the key that this manifest must match."""

    name: str
    directory: str
    key: Callable[[], StageKey]
    written_last: str = MANIFEST_NAME

    def difference(self) -> str | None:
        """Why it must be built, in words; None if it is complete and matches."""
        return self.key().difference(self.directory)


@dataclass(frozen=True)
class Stage:
    """One command, and the outputs that it completes; `command` and `environment` are called at launch only."""

    name: str
    outputs: tuple[StageOutput, ...]
    command: Callable[[], list[str]]
    environment: Callable[[], dict[str, str]] = dict
    restart: str | None = None
    """Name of a restart: the command builds the stage again, and resumes a build that was started under this name."""
    is_restartable: bool = True
    """False for a sweep, whose complete trials are kept."""
    job: Job | None = None
    """Its ranks, if a launcher starts them."""
    is_timed: bool = True
    """Whether its seconds are recorded in the workspace; False for a part of a stage."""

    def restarted(self, name: str) -> Stage:
        """The same stage, to be built again although it may be complete."""
        return replace(self, command=lambda: [*self.command(), f"--restart={name}"], restart=name)

    def marks(self) -> list[tuple[int, int] | None]:
        """Marks of the outputs that change with each build, even if the bytes are the same."""
        return [_mark_of(storage.join(output.directory, output.written_last)) for output in self.outputs]

    def difference(self) -> str | None:
        """Why the stage must be built, from its first incomplete output; None if all are complete."""
        for output in self.outputs:
            if reason := output.difference():
                return reason if len(self.outputs) == 1 else f"{output.name}: {reason}"
        return None

    def key_digest(self) -> str:
        """Digest of all that decides the outputs; identifies a stage that was killed.

        The checkpoint that a run was continued from is left out: it is not known before the run has started.
        """
        keys = [output.key() for output in self.outputs]
        inputs = [{name: key.inputs[name] for name in key.inputs if name != CONTINUED_FROM} for key in keys]
        return digest_of(
            [[key.stage, key.stage_version, key.config, own] for key, own in zip(keys, inputs, strict=True)]
        )

    def manifests(self) -> dict[str, Manifest]:
        """The manifests by output name, of complete outputs only."""
        found = {output.name: read_manifest(output.directory) for output in self.outputs}
        return {name: manifest for name, manifest in found.items() if manifest is not None}


def _mark_of(uri: str) -> tuple[int, int] | None:
    filesystem, path = storage.filesystem_of(uri)
    info = filesystem.get_file_info(path)
    if not info.is_file:
        return None
    return int(info.mtime_ns or 0), os.stat(path).st_ino if storage.is_local(uri) else 0


def preprocessing_stages(whole: WholeRecipe) -> list[Stage]:
    """Documents, vocabulary and examples, in the order of their dependencies."""
    workspace = whole.run.workspace

    def stage(name: str, module: str, key: Callable[[], StageKey]) -> Stage:
        output = StageOutput(name, storage.join(workspace, name), key)
        return Stage(name, (output,), lambda: python_module(whole, module))

    return [
        stage(DOCUMENTS, "pipelines.shard_corpus", lambda: documents_key(whole.documents, workspace)),
        stage(VOCABULARY, "pipelines.train_vocabulary", lambda: vocabulary_key(whole.vocabulary, workspace)),
        stage(EXAMPLES, "pipelines.build_examples", lambda: examples_key(whole.examples, workspace)),
    ]


def pretraining_stage(whole: WholeRecipe, continue_finished: bool = False) -> Stage:
    """Pre-training, through the launcher of the recipe's cluster.

    Args:
        whole: the recipe.
        continue_finished: start from a checkpoint of the finished run instead of step 0.
    """
    sections = PretrainingSections(whole.recipe, workspace_of(whole.run), whole.model, whole.pretraining)
    directory = storage.join(sections.workspace, PRETRAINING)

    def key() -> StageKey:
        with registry_of(whole):
            return training.pretraining_inputs(sections).key

    output = StageOutput(PRETRAINING, directory, key)
    job = Job.of(whole, "training.pretrain", whole.pretraining.ranks)
    launcher = launcher_of(job)
    return Stage(
        PRETRAINING,
        (output,),
        command=lambda: [*launcher.command(job), *(["--continue"] if continue_finished else [])],
        environment=launcher.environment,
        job=job,
    )


def possible_place(whole: WholeRecipe) -> Place | None:
    """Where `--continue` would start pre-training; None where it would not differ from a run without it.

    Raises:
        InputError: a stage that pre-training reads is missing.
    """
    sections = PretrainingSections(whole.recipe, workspace_of(whole.run), whole.model, whole.pretraining)
    with registry_of(whole):
        found = possible_continuation(training.pretraining_inputs(sections))
    return found.place if found is not None else None


def distillation_stage(whole: WholeRecipe) -> Stage:
    """Distillation of the pre-trained encoder, or of another teacher, through the launcher of the recipe's cluster."""
    sections = DistillationSections(whole.recipe, workspace_of(whole.run), whole.distillation)
    directory = storage.join(sections.workspace, DISTILLATION)

    def key() -> StageKey:
        with registry_of(whole):
            return distillation_inputs(sections).key

    output = StageOutput(DISTILLATION, directory, key)
    job = Job.of(whole, "training.distill", whole.pretraining.ranks)
    launcher = launcher_of(job)
    return Stage(DISTILLATION, (output,), lambda: launcher.command(job), launcher.environment, job=job)


def finetuning_stages(whole: WholeRecipe, as_own_run: bool = False) -> list[Stage]:
    """Fine-tuning: one command that trains every task of the recipe; empty if the recipe names no task.

    Args:
        whole: the recipe.
        as_own_run: for a trial that is a run of its own. With one process it is trained by the worker of that run,
            unless the cluster has a scheduler, which finds a free node for it.
    """
    if not whole.finetuning.tasks:
        return []
    sections = finetuning_sections(whole)

    def output(task: str, start: str) -> StageOutput:
        directory = finetuning.finetuning_directory(sections.workspace, task, start)

        def key() -> StageKey:
            with registry_of(whole):
                return finetuning.finetuning_key(sections, task, start)

        return StageOutput(f"{task}/{start}", directory, key)

    starts = (PRETRAINED, RANDOM) if whole.finetuning.compare_with_random else (PRETRAINED,)
    outputs = tuple(output(task, start) for task in whole.finetuning.tasks for start in starts)
    job = Job.of(whole, "training.finetune", whole.finetuning.ranks, one_node=whole.finetuning.ranks == 1)
    launcher = launcher_of(job)
    if job.ranks == 1 and (job.cluster.kind == "none" or (as_own_run and not launcher.finds_free_node)):
        return [Stage(FINETUNING, outputs, lambda: python_module(whole, "training.finetune"), single_node.environment)]
    return [Stage(FINETUNING, outputs, lambda: launcher.command(job), launcher.environment, job=job)]


def finetuning_sections(whole: WholeRecipe) -> FinetuningSections:
    """The sections that fine-tuning and sweeps read."""
    initial = whole.pretraining.initial_encoder
    return FinetuningSections(whole.recipe, workspace_of(whole.run), whole.finetuning, whole.model, initial)


def require_initial_encoder(whole: WholeRecipe) -> None:
    """Check that the initial encoder of pre-training exists and fits the recipe, before the hours of earlier stages.

    Raises:
        InputError: it does not.
    """
    source = whole.pretraining.initial_encoder
    if source is None:
        return
    vocabulary = storage.join(whole.run.workspace, VOCABULARY)
    if whole.vocabulary.origin is None and read_manifest(vocabulary) is None:
        raise InputError(
            f"{whole.recipe.path}: pretraining.initial_encoder = {source!r} needs examples with the encoder's "
            f"vocabulary, but [vocabulary] trains another one; set vocabulary.from = {source!r}"
        )
    with registry_of(whole):
        encoder = resolved_encoder(source)
    continued_model(whole.model, encoder.model, source, whole.recipe.path)


def require_task_data(whole: WholeRecipe) -> None:
    """Check that the inputs of fine-tuning exist, before the hours of earlier stages.

    Raises:
        InputError: a file of a task is missing.
    """
    finetuning.require_task_data(whole.finetuning)


def require_finished_pretraining(whole: WholeRecipe) -> None:
    """Check that there is a pre-training to continue, before the hours of earlier stages.

    Raises:
        InputError: there is none, neither finished nor under way.
    """
    directory = storage.join(workspace_of(whole.run), PRETRAINING)
    if read_manifest(directory) is None and not is_open(directory):
        raise InputError(f"{directory}: no finished run to continue; run without --continue")


def require_nodes(whole: WholeRecipe, parts: Iterable[tuple[Iterable[Stage], bool]], rebuild: bool) -> None:
    """Check the nodes on which this run will start ranks, before the hours of earlier stages.

    Args:
        whole: the recipe.
        parts: stages in their order, and whether this run builds them itself.
        rebuild: every stage is built again.

    Raises:
        InputError: the nodes cannot be used.
    """
    if whole.pretraining.cluster.kind == "none":
        return
    jobs, is_due = list[Job](), rebuild
    for stages, is_here in parts:
        for stage in stages:
            # A stage is due after one that is due.
            is_due = is_due or _is_due(stage)
            if is_due and is_here and stage.job is not None:
                jobs.append(stage.job)
    if jobs:
        launcher_of(jobs[0]).check(jobs, whole)


def _is_due(stage: Stage) -> bool:
    try:
        return stage.difference() is not None
    except InputError:
        # An input is missing; the stage reports it, unless an earlier one makes it.
        return True


@contextmanager
def registry_of(whole: WholeRecipe) -> Iterator[None]:
    """Set the registry in which a key resolves aliases; the stage's command gets it from the tracker."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri(whole)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


def python_module(whole: WholeRecipe, module: str) -> list[str]:
    """The command that runs a module on the recipe, in one process."""
    return command_of(module, recipe_arguments(whole))
