"""Register the models of a run in MLflow, so that they load with `transformers` and `mlflow` alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.console.narration import Narrator
from flows.parameters.tracking_config import TrackingConfig
from flows.parameters.whole_recipe import WholeRecipe
from flows.registry.evaluations import score_in_words
from flows.registry.logged_models import log_model
from flows.registry.model_card import card_text, summary
from flows.registry.model_to_register import ModelToRegister, distilled_encoder, finetuned_models, pretrained_encoder
from flows.registry.promotion import CHALLENGER, PROMOTION_TAG, move_alias, promote, version_at
from flows.running.outcomes import RegisteredModel, StageOutcome, shown_seconds
from flows.tracking.runs import CODE_VERSION_TAG, DIGEST_TAG, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient


@task(task_run_name="register encoder", cache_policy=NO_CACHE, persist_result=False)
def register_encoder(whole: WholeRecipe, tracker: Tracker, outcome: StageOutcome) -> tuple[RegisteredModel, ...]:
    """Register the pre-trained encoder as a masked-language model."""
    return _register_all(whole, tracker, outcome, [pretrained_encoder(whole, outcome)])


@task(task_run_name="register distilled encoder", cache_policy=NO_CACHE, persist_result=False)
def register_distilled(whole: WholeRecipe, tracker: Tracker, outcome: StageOutcome) -> tuple[RegisteredModel, ...]:
    """Register the student of a distillation, in the same way as the encoder."""
    return _register_all(whole, tracker, outcome, [distilled_encoder(whole, outcome)])


@task(task_run_name="register {outcome.stage}", cache_policy=NO_CACHE, persist_result=False)
def register_finetuned(whole: WholeRecipe, tracker: Tracker, outcome: StageOutcome) -> tuple[RegisteredModel, ...]:
    """Register each task's model that was initialized from the pre-trained encoder."""
    return _register_all(whole, tracker, outcome, finetuned_models(whole, outcome))


def _register_all(
    whole: WholeRecipe, tracker: Tracker, outcome: StageOutcome, models: Iterable[ModelToRegister]
) -> tuple[RegisteredModel, ...]:
    """Register models, except for those with an obstacle, which are named with it."""
    narrator = Narrator("registry", get_run_logger())
    registered = []
    for model in models:
        if reason := model.files.obstacle:
            narrator.event(f"{model.files.name} is not registered: {reason}")
        else:
            registered.append(_register(whole, tracker, outcome, model, narrator))
    return tuple(registered)


def _register(
    whole: WholeRecipe, tracker: Tracker, outcome: StageOutcome, model: ModelToRegister, narrator: Narrator
) -> RegisteredModel:
    client, name = tracker.client, model.files.name
    number = registered_version(client, name, model.manifest.digest)
    new = number is None
    if number is None:
        begin = time.monotonic()
        narrator.event(f"registering {name}: this model is not registered yet")
        number = tracker.patience.call(lambda: log_version(tracker, outcome.mlflow_run_id, model))
        narrator.event(f"{name} version {number} registered in {shown_seconds(time.monotonic() - begin)}")
    else:
        narrator.event(f"skipped: already registered as {name} version {number}")
    alias = enter_contest(client, name, number, whole.tracking, narrator)
    return RegisteredModel(name=name, version=number, alias=alias, new=new)


def enter_contest(client: MlflowClient, name: str, number: str, tracking: TrackingConfig, narrator: Narrator) -> str:
    """Make a version the challenger and evaluate it at the gate, once; returns its alias.

    A version that was evaluated before is not changed: a user may have rolled it back since.
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
    """The newest version of a model that was made from the output with this digest; None if there is none."""
    found = client.search_model_versions(f"name = '{name}' AND tags.`{DIGEST_TAG}` = '{digest}'")
    return str(max(int(each.version) for each in found)) if found else None


def log_version(tracker: Tracker, run_id: str, model: ModelToRegister) -> str:
    """Log a Hugging Face directory as a model of a run and register it; returns the version's number."""
    # Takes seconds to import, and a run that skips everything does not need it.
    import mlflow

    name, manifest = model.files.name, model.manifest
    metadata = {"manifest_digest": manifest.digest, "manifest_inputs": manifest.inputs}
    with _as_default_server(tracker.uri):
        with mlflow.start_run(run_id=run_id), _no_bytecode():
            logged = log_model(model.files, card_text(model.card), metadata)
        _ensure_registered_model(tracker.client, name)
        # The tags are created with the version in one step: no version is ever visible without its digest.
        created = tracker.client.create_model_version(
            name,
            source=logged.model_uri,
            run_id=run_id,
            tags=_version_tags(model),
            description=f"{summary(model.card)} {score_in_words(model.evaluation, manifest, model.data)}",
            model_id=logged.model_id,
        )
    return str(created.version)


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Write no bytecode: a model from code runs once in its own folder, and bytecode would contain local paths."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


@contextmanager
def _as_default_server(uri: str) -> Iterator[None]:
    """Set the server of MLflow's functions without a client, within the block.

    MLflow also writes it into the environment, where it would affect later calls of this process.
    """
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type] # None resets it


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version_tags(model: ModelToRegister) -> dict[str, str]:
    """A few tags, since the page shows all of them in one cell; other scores are on the model's card and in its run."""
    manifest = model.manifest
    evaluation = model.evaluation.tags() if model.evaluation else {}
    return {
        **evaluation,
        DIGEST_TAG: manifest.digest,
        CODE_VERSION_TAG: manifest.code_version,
        "clozeworks.stage": manifest.stage,
    }
