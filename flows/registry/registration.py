"""Register the models of a run in MLflow, so that `transformers` and `mlflow` alone load them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.console.narration import Narrator
from flows.console.tables import shown
from flows.parameters.tracking_config import TrackingConfig
from flows.parameters.whole_recipe import WholeRecipe
from flows.registry.criteria import Evaluation
from flows.registry.evaluations import (
    dev_files,
    distilled_evaluation,
    encoder_evaluation,
    finetuned_evaluation,
    score_in_words,
)
from flows.registry.logged_models import ModelFiles, log_model
from flows.registry.model_card import CardFacts, card_facts, card_text, summary
from flows.registry.promotion import CHALLENGER, PROMOTION_TAG, move_alias, promote, version_at
from flows.running.outcomes import RegisteredModel, StageOutcome, shown_seconds
from flows.tracking.runs import CODE_VERSION_TAG, DIGEST_TAG, Tracker
from pipelines.contract import storage
from pipelines.contract.manifest import Manifest, read_manifest, require_manifest, verify_file
from pipelines.contract.workspace import ENCODER_DIRECTORY, MODEL_DIRECTORY, PRETRAINED
from training.settings.distillation import DistillationConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENCODER_SUFFIX, DISTILLED_SUFFIX = "encoder", "encoder-distilled"


@dataclass(frozen=True)
class Made:
    """A model that a stage wrote: its files, the manifest that proves them whole, and how good it is."""

    files: ModelFiles
    manifest: Manifest
    evaluation: Evaluation | None
    data: str = "development data"
    """In words: what the evaluation is on."""


@task(task_run_name="register encoder", cache_policy=NO_CACHE, persist_result=False)
def register_encoder(whole: WholeRecipe, tracker: Tracker, outcome: StageOutcome) -> RegisteredModel:
    """Register the pre-trained encoder as a masked-language model."""
    (directory,) = outcome.directories.values()
    manifest = _manifest_of(directory)
    files = _encoder_files(whole, ENCODER_SUFFIX, directory)
    data = f"held-out examples of length {whole.pretraining.phases[-1].max_seq_length}"
    return _register(whole, tracker, outcome, Made(files, manifest, encoder_evaluation(whole, manifest), data))


@task(task_run_name="register distilled encoder", cache_policy=NO_CACHE, persist_result=False)
def register_distilled(whole: WholeRecipe, tracker: Tracker, outcome: StageOutcome) -> RegisteredModel:
    """Register the student that distillation made, as the encoder is registered."""
    (directory,) = outcome.directories.values()
    manifest = _manifest_of(directory)
    files = _encoder_files(whole, DISTILLED_SUFFIX, directory)
    config = whole.recipe.section("distillation", DistillationConfig)
    evaluation = distilled_evaluation(whole, manifest, config.eval_examples)
    data = f"held-out examples of length {config.max_seq_length}"
    return _register(whole, tracker, outcome, Made(files, manifest, evaluation, data))


@task(task_run_name="register {outcome.stage}", cache_policy=NO_CACHE, persist_result=False)
def register_finetuned(whole: WholeRecipe, tracker: Tracker, outcome: StageOutcome) -> tuple[RegisteredModel, ...]:
    """Register each task's model that began from the pre-trained encoder; random ones serve comparison only."""
    trials = ((*output.rsplit("/", 1), directory) for output, directory in outcome.directories.items())
    return tuple(
        _register(whole, tracker, outcome, _finetuned(whole, name, directory))
        for name, start, directory in trials
        if start == PRETRAINED
    )


def _encoder_files(whole: WholeRecipe, suffix: str, directory: str) -> ModelFiles:
    return ModelFiles(f"{whole.model_prefix}-{suffix}", storage.join(directory, ENCODER_DIRECTORY), {})


def _finetuned(whole: WholeRecipe, name: str, directory: str) -> Made:
    manifest = _manifest_of(directory)
    files = ModelFiles(
        f"{whole.model_prefix}-{name}",
        storage.join(directory, MODEL_DIRECTORY),
        manifest.config,
        takes_pairs=whole.finetuning.family(name).takes_pairs(whole.finetuning, name),
        null_threshold=manifest.statistics.get("dev", {}).get("null_threshold"),
    )
    # The folder too, for GLUE has a dev.tsv in each of its tasks'.
    names = [shown("/".join(path.split("/")[-2:])) for path in dev_files(whole, name)]
    return Made(files, manifest, finetuned_evaluation(whole, name, manifest), *names[:1])


def _manifest_of(directory: str) -> Manifest:
    """The manifest of a stage of the workspace, whose files are verified: what is registered is what was trained."""
    manifest = read_manifest(directory)
    stage = manifest.stage if manifest is not None else os.path.basename(directory)
    manifest = require_manifest(directory, stage, "clozeworks run")
    for file in manifest.files:
        verify_file(directory, file)
    return manifest


def _register(whole: WholeRecipe, tracker: Tracker, outcome: StageOutcome, made: Made) -> RegisteredModel:
    narrator = Narrator("registry", get_run_logger())
    client, name = tracker.client, made.files.name
    number = registered_version(client, name, made.manifest.digest)
    new = number is None
    if number is None:
        begin = time.monotonic()
        narrator.event(f"registering {name}: this model is not registered yet")
        card = card_facts(whole, name, made.files.pipeline_task, made.files.takes_pairs, made.manifest)
        number = tracker.patience.call(lambda: log_version(tracker, outcome.mlflow_run_id, made, card))
        narrator.event(f"{name} version {number} registered in {shown_seconds(time.monotonic() - begin)}")
    else:
        narrator.event(f"skipped: {name} version {number} is this model")
    alias = enter_contest(client, name, number, whole.tracking, narrator)
    return RegisteredModel(name=name, version=number, alias=alias, new=new)


def enter_contest(client: MlflowClient, name: str, number: str, tracking: TrackingConfig, narrator: Narrator) -> str:
    """Make a version the challenger and let the gate judge it, once; returns the alias that it bears.

    A version that was judged before stays where it is: a person may have rolled it back since.
    """
    alias = tracking.alias
    if version_at(client, name, alias) != number and move_alias(client, name, CHALLENGER, number):
        narrator.event(f"models:/{name}@{CHALLENGER} is version {number}")
    if PROMOTION_TAG not in client.get_model_version(name, number).tags:
        decided = promote(client, name, number, tracking)
        outcome = f"is now @{alias}" if decided.promoted else f"stays @{CHALLENGER}"
        narrator.event(f"{name} version {number} {outcome}: {decided.reason}")
    return alias if version_at(client, name, alias) == number else CHALLENGER


def registered_version(client: MlflowClient, name: str, digest: str) -> str | None:
    """The newest version of a model that was made from the output with this digest; None where there is none."""
    found = client.search_model_versions(f"name = '{name}' AND tags.`{DIGEST_TAG}` = '{digest}'")
    return str(max(int(each.version) for each in found)) if found else None


def log_version(tracker: Tracker, run_id: str, made: Made, card: CardFacts) -> str:
    """Log a Hugging Face directory as a model of a run and register it; returns the version's number."""
    # Seconds to import, and a run that skips everything needs none of it.
    import mlflow

    name, manifest = made.files.name, made.manifest
    metadata = {"manifest_digest": manifest.digest, "manifest_inputs": manifest.inputs}
    with _as_default_server(tracker.uri):
        with mlflow.start_run(run_id=run_id), _no_bytecode():
            logged = log_model(made.files, card_text(card), metadata)
        _ensure_registered_model(tracker.client, name)
        # The tags come with the version in one step: no version is ever seen without its digest.
        created = tracker.client.create_model_version(
            name,
            source=logged.model_uri,
            run_id=run_id,
            tags=_version_tags(made),
            description=f"{summary(card)} {score_in_words(made.evaluation, manifest, made.data)}",
            model_id=logged.model_id,
        )
    return str(created.version)


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """A model from code is run once from its own folder, where Python would leave bytecode that names this machine."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


@contextmanager
def _as_default_server(uri: str) -> Iterator[None]:
    """Where MLflow's functions without a client go, for a while.

    MLflow writes it into the environment too, where it would name the server of what this process does next.
    """
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type] # None is how MLflow forgets it


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version_tags(made: Made) -> dict[str, str]:
    """Few, for the page shows all of them in one cell: every other score is on the model's card and in its run."""
    manifest = made.manifest
    evaluation = made.evaluation.tags() if made.evaluation else {}
    return {
        **evaluation,
        DIGEST_TAG: manifest.digest,
        CODE_VERSION_TAG: manifest.code_version,
        "clozeworks.stage": manifest.stage,
    }
