"""Register the models of a run in MLflow, so that `transformers` and `mlflow` alone load them."""

from __future__ import annotations

import importlib
import json
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.narration import Narrator
from flows.stage_run import RegisteredModel, StageOutcome, shown_seconds
from flows.tracking import DIGEST_TAG, Tracker, numbers_of
from flows.whole_recipe import WholeRecipe
from pipelines import storage
from pipelines.contract import MASK, Manifest, require_manifest
from training.stages import ENCODER_DIRECTORY, MODEL_DIRECTORY, PRETRAINED

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENCODER_SUFFIX = "encoder"
FILL_MASK, TEXT_CLASSIFICATION = "fill-mask", "text-classification"

_INPUT_EXAMPLES = {
    FILL_MASK: [f"It returns the {MASK} of the list."],
    TEXT_CLASSIFICATION: ["It returns the number of items in the list."],
}
_LICENSE_UNKNOWN = "unknown"


@task(task_run_name="register encoder", cache_policy=NO_CACHE, persist_result=False)
def register_encoder(whole: WholeRecipe, tracker: Tracker, outcome: StageOutcome) -> RegisteredModel:
    """Register the pre-trained encoder as a fill-mask pipeline."""
    (directory,) = outcome.directories.values()
    name = f"{whole.model_prefix}-{ENCODER_SUFFIX}"
    return _register(whole, tracker, outcome, name, FILL_MASK, directory, ENCODER_DIRECTORY)


@task(task_run_name="register {outcome.stage}", cache_policy=NO_CACHE, persist_result=False)
def register_finetuned(whole: WholeRecipe, tracker: Tracker, outcome: StageOutcome) -> tuple[RegisteredModel, ...]:
    """Register each task's model that began from the pre-trained encoder; random ones serve comparison only."""
    trials = ((*output.rsplit("/", 1), directory) for output, directory in outcome.directories.items())
    return tuple(
        _register(
            whole, tracker, outcome, f"{whole.model_prefix}-{name}", TEXT_CLASSIFICATION, directory, MODEL_DIRECTORY
        )
        for name, start, directory in trials
        if start == PRETRAINED
    )


def _register(
    whole: WholeRecipe,
    tracker: Tracker,
    outcome: StageOutcome,
    name: str,
    pipeline_task: str,
    stage_directory: str,
    model_directory: str,
) -> RegisteredModel:
    narrator = Narrator("registry", get_run_logger())
    alias = whole.tracking.alias
    manifest = require_manifest(stage_directory, "python -m flows.end_to_end")
    number = registered_version(tracker.client, name, manifest.digest)
    new = number is None
    if number is None:
        begin = time.monotonic()
        narrator.event(f"registering {name}: this model is not registered yet")
        directory = storage.local_path(storage.join(stage_directory, model_directory))
        number = log_version(tracker, outcome.mlflow_run_id, name, pipeline_task, directory, manifest)
        narrator.event(f"{name} version {number} registered in {shown_seconds(time.monotonic() - begin)}")
    else:
        narrator.event(f"skipped: {name} version {number} is this model")
    if move_alias(tracker.client, name, alias, number):
        narrator.event(f"alias moved: models:/{name}@{alias} is version {number}")
    return RegisteredModel(name=name, version=number, alias=alias, new=new)


def registered_version(client: MlflowClient, name: str, digest: str) -> str | None:
    """The newest version of a model that was made from the output with this digest; None where there is none."""
    found = client.search_model_versions(f"name = '{name}' AND tags.`{DIGEST_TAG}` = '{digest}'")
    return str(max(int(each.version) for each in found)) if found else None


def move_alias(client: MlflowClient, name: str, alias: str, number: str) -> bool:
    """Point an alias at a version; False where it does already."""
    # The SQL store keeps the number as an integer, a tracking server sends it as text.
    if str(client.get_registered_model(name).aliases.get(alias)) == number:
        return False
    client.set_registered_model_alias(name, alias, number)
    return True


def log_version(
    tracker: Tracker, run_id: str, name: str, pipeline_task: str, directory: str, manifest: Manifest
) -> str:
    """Log a Hugging Face directory as a model of a run and register it; returns the version's number."""
    # Seconds to import, and a run that skips everything needs none of it.
    import mlflow
    from huggingface_hub import ModelCard

    pipeline = _load_pipeline(name, pipeline_task, directory)
    mlflow.set_tracking_uri(tracker.uri)
    with mlflow.start_run(run_id=run_id):
        # The signature is inferred from what the pipeline answers to the example.
        logged = mlflow.transformers.log_model(
            pipeline,
            name=name,
            task=pipeline_task,
            # Without a card of ours MLflow would ask the model hub for one.
            model_card=ModelCard(_card_text(name, pipeline_task, manifest)),
            input_example=_INPUT_EXAMPLES[pipeline_task],
            pip_requirements=_requirements(),
            metadata={"manifest_digest": manifest.digest, "manifest_inputs": manifest.inputs},
        )
    _ensure_registered_model(tracker.client, name)
    # The tags come with the version in one step: no version is ever seen without its digest.
    created = tracker.client.create_model_version(
        name, source=logged.model_uri, run_id=run_id, tags=_version_tags(manifest), model_id=logged.model_id
    )
    return str(created.version)


def _load_pipeline(name: str, pipeline_task: str, directory: str) -> Any:
    # `Any`: transformers types its loaders by overloads on literal task names and leaves its logging untyped.
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model_type = (
        transformers.AutoModelForMaskedLM
        if pipeline_task == FILL_MASK
        else transformers.AutoModelForSequenceClassification
    )
    # A pre-training checkpoint also holds the next-sentence head, which the masked-language model leaves out.
    model = model_type.from_pretrained(directory, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    # MLflow writes this name into the version; it would be the directory's path on this machine.
    model.name_or_path = name
    return transformers.pipeline(pipeline_task, model=model, tokenizer=tokenizer, device="cpu")


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version_tags(manifest: Manifest) -> dict[str, str]:
    scores = {f"score.{key}": f"{value:.6g}" for key, value in numbers_of(manifest.statistics).items()}
    return {
        **scores,
        DIGEST_TAG: manifest.digest,
        "clozeworks.code_version": manifest.code_version,
        "clozeworks.stage": manifest.stage,
    }


def _requirements() -> list[str]:
    """What a consumer installs: exact versions, without the local part (`+cpu`) that only this machine's index has."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in ("mlflow", "transformers", "torch")]


def _card_text(name: str, pipeline_task: str, manifest: Manifest) -> str:
    front_matter = f"---\nlicense: {_LICENSE_UNKNOWN}\npipeline_tag: {pipeline_task}\n---\n"
    statistics = json.dumps(manifest.statistics, indent=1, sort_keys=True)
    settings = json.dumps(manifest.config, indent=1, sort_keys=True)
    return (
        f"{front_matter}\n# {name}\n\nBERT, pre-trained from raw text with Clozeworks {manifest.code_version}.\n\n"
        f"## Scores\n\n```json\n{statistics}\n```\n\n## Settings\n\n```json\n{settings}\n```\n"
    )
