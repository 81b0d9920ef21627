"""Track a run in MLflow: one parent run per flow, one child run per stage; a killed one resumes in its run."""

from __future__ import annotations

import json
import logging
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from flows.console.narration import LOGGER_NAME
from flows.parameters.whole_recipe import WholeRecipe
from flows.servers.patient_client import say
from flows.tracking.mlflow_pages import run_page
from flows.tracking.stores import open_store, tracking_uri
from pipelines.contract import storage
from pipelines.contract.credentials import redacted
from pipelines.contract.manifest import Manifest, digest_of
from pipelines.contract.workspace import BROUGHT_INPUT, CORPUS_INPUT, code_version
from pipelines.statistics.training import Lineage, TrainingStatistics
from training.tracking.flattening import NAME_LEFT_OUT, flatten, numbers_of
from training.tracking.patience import first_line

if TYPE_CHECKING:  # MLflow takes two seconds to import, which command.py hides behind the start of Prefect's server
    pass

PARENT_TAG = "mlflow.parentRunId"
FLOW_TAG = "clozeworks.flow"
KEY_TAG = "clozeworks.key"
"""Digest that identifies a run: a killed run resumes in the MLflow run with the same digest."""
STAGE_TAG = "clozeworks.stage"
SKIPPED_TAG = "clozeworks.skipped"
DIGEST_TAG = "clozeworks.manifest_digest"
CODE_VERSION_TAG = "clozeworks.code_version"
LINEAGE_TAG = "clozeworks.lineage"
"""Where the initial weights of a training came from."""

ItemT = TypeVar("ItemT")

_NEWEST_FIRST = "attributes.start_time DESC"
_MAX_VALUES_PER_REQUEST = 100
_MAX_PARAMETER_LENGTH = 500
_REASON_CHARACTERS = 160
_DIGEST_CHARACTERS = 32
"""MLflow accepts up to 36."""


class Tracker:
    """The runs of one recipe in its tracking store."""

    def __init__(self, whole: WholeRecipe):
        self.uri = tracking_uri(whole)
        self._workspace = whole.run.workspace
        own = whole.run.workspace if whole.tracking_server is None else None
        self.client, self.experiment_id, self.patience = open_store(self.uri, own, whole.tracking.experiment)

    @contextmanager
    def flow_run(self, flow: str, whole: WholeRecipe, parent_run_id: str | None = None) -> Iterator[str]:
        """The parent run of a flow, with the recipe's file and its parameters; yields the run's id.

        A flow inside another one uses that one's run, `parent_run_id`, so that all stages are its children. A flow
        that was killed or failed, and is run again with the same recipe, resumes in its run.
        """
        if parent_run_id is not None:
            yield parent_run_id
            return
        key = digest_of([flow, _settings_of(whole)])
        run_id = self._unfinished_run({KEY_TAG: key, FLOW_TAG: flow})
        tags = {FLOW_TAG: flow, KEY_TAG: key, CODE_VERSION_TAG: code_version()}
        with self._run(f"{whole.run.name} {flow}", tags, run_id) as run_id:
            if self.uri.startswith(("http://", "https://")):
                page = run_page(redacted(self.uri), self.experiment_id, run_id)
                logging.getLogger(LOGGER_NAME).info("%s", f"tracking     {page}")
            softly("the recipe is not logged", lambda: self._log_recipe(run_id, whole))
            yield run_id

    @contextmanager
    def stage_run(self, stage: str, parent_run_id: str, key: str | None = None) -> Iterator[str]:
        """The child run of a stage; yields its id, under which the stage's own process logs metrics by step.

        Args:
            stage: its name.
            parent_run_id: the flow's run.
            key: digest of all that decides the stage's output. A stage that was killed or failed, and is built again
                with the same key, resumes in its run, in whichever flow that was; one that the same flow's run had
                completed before it was killed keeps its run too. None always starts a new run.
        """
        tags = {PARENT_TAG: parent_run_id, STAGE_TAG: stage, CODE_VERSION_TAG: code_version()}
        run_id = None
        if key is not None:
            tags[KEY_TAG] = digest_of([self._workspace, key])
            same = {KEY_TAG: tags[KEY_TAG], STAGE_TAG: stage}
            run_id = self._unfinished_run(same) or self._found_run({**same, PARENT_TAG: parent_run_id})
        with self._run(stage, tags, run_id) as run_id:
            yield run_id

    def child_environment(self, run_id: str) -> dict[str, str]:
        """Variables with which a stage's process logs into its run."""
        return {"MLFLOW_TRACKING_URI": self.uri, "MLFLOW_RUN_ID": run_id}

    def log_stage(self, run_id: str, manifests: Mapping[str, Manifest], seconds: float | None) -> None:
        """Log the figures of a complete stage, unless MLflow is unreachable; `seconds` is None if it was skipped."""
        names = ", ".join(manifests)
        softly(f"figures of {names} are not logged", lambda: self._log_stage(run_id, manifests, seconds))

    def _log_stage(self, run_id: str, manifests: Mapping[str, Manifest], seconds: float | None) -> None:
        if seconds is None and self.client.get_run(run_id).data.tags.get(SKIPPED_TAG) == "false":
            # The run built the stage before the flow was killed, and logged this then.
            return
        metrics: dict[str, float] = {} if seconds is None else {"stage_seconds": seconds}
        parameters: dict[str, Any] = {}
        tags = {SKIPPED_TAG: str(seconds is None).lower()}
        for name, manifest in manifests.items():
            prefix = "" if len(manifests) == 1 else f"{name}/"
            figures = {key: value for key, value in manifest.statistics.items() if key != "lineage"}
            metrics |= {f"{prefix}{key}": value for key, value in numbers_of(figures).items()}
            if lineage := _lineage_of(manifest):
                tags[LINEAGE_TAG] = "; ".join(record.in_words() for record in lineage)
            # The stage's process may log parameters into the same run, and MLflow refuses a second value for a name.
            parameters |= flatten(manifest.config, f"manifest.{prefix}")
            tags[DIGEST_TAG if len(manifests) == 1 else f"{DIGEST_TAG}.{NAME_LEFT_OUT.sub('_', name)}"] = (
                manifest.digest
            )
            text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True)
            self.client.log_text(run_id, text, f"manifests/{name}.json")
        self._log(run_id, parameters, metrics, tags)
        self._log_lineage(run_id, list(manifests.values()))

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Log figures of a complete run."""
        softly(f"{', '.join(metrics)} are not logged", lambda: self._log(run_id, {}, metrics, {}))

    def log_texts(self, run_id: str, texts: Mapping[str, str], folder: str) -> None:
        """Log texts as files of a run."""
        for name, text in texts.items():
            path = f"{folder}/{name}"

            def log(text: str = text, path: str = path) -> None:
                self.client.log_text(run_id, text, path)

            softly(f"{path} is not logged", log)

    def _log_lineage(self, run_id: str, manifests: list[Manifest]) -> None:
        """Log the inputs of a stage as the run's data sets, each with the digest from its manifest."""
        from mlflow.entities import Dataset, DatasetInput

        datasets = {
            name: DatasetInput(
                Dataset(name, digest[:_DIGEST_CHARACTERS], "clozeworks", json.dumps(self._source_of(name, manifest)))
            )
            for manifest in manifests
            for name, digest in sorted(manifest.inputs.items())
            if digest
        }
        if datasets:
            self.client.log_inputs(run_id, datasets=list(datasets.values()))

    def _source_of(self, name: str, consumer: Manifest) -> Any:
        """Location of an input stage; for the corpus itself, the sources that the recipe names."""
        if name == CORPUS_INPUT:
            return consumer.config.get("sources")
        for record in _lineage_of(consumer):
            if record.relation == name:
                return {"uri": record.source}
        if name == BROUGHT_INPUT:
            return {"uri": consumer.statistics.get("origin")}
        return {"uri": storage.join(self._workspace, name)}

    def _log_recipe(self, run_id: str, whole: WholeRecipe) -> None:
        self._log(run_id, flatten(_settings_of(whole)), {}, {})
        self.client.log_artifact(run_id, whole.recipe.path, "recipe")
        if whole.recipe.overrides:
            self.client.log_text(run_id, "\n".join(whole.recipe.overrides) + "\n", "recipe/overrides.txt")

    def _log(
        self, run_id: str, parameters: Mapping[str, Any], metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now_ms = int(time.time() * 1000)
        if metrics:
            # A resumed run has some already; logged again they would appear twice, at another time.
            logged = self.client.get_run(run_id).data.metrics
            metrics = {name: value for name, value in metrics.items() if logged.get(name) != value}
        for values in _batches([Metric(name, value, now_ms, 0) for name, value in metrics.items()]):
            self.client.log_batch(run_id, metrics=values)
        for settings in _batches([Param(name, _shown(value)) for name, value in parameters.items()]):
            self.client.log_batch(run_id, params=settings)
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def _unfinished_run(self, tags: Mapping[str, str]) -> str | None:
        """The newest run with these tags that has not finished; after SIGKILL its status is still RUNNING."""
        return self._found_run(tags, "attributes.status != 'FINISHED'")

    def _found_run(self, tags: Mapping[str, str], *conditions: str) -> str | None:
        wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        found = self.client.search_runs(
            [self.experiment_id], " AND ".join([*wanted, *conditions]), max_results=1, order_by=[_NEWEST_FIRST]
        )
        return found[0].info.run_id if found else None

    @contextmanager
    def _run(self, name: str, tags: dict[str, str], run_id: str | None) -> Iterator[str]:
        """Start or resume a run; it ends with the block."""
        if run_id is None:
            run_id = self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
        else:
            self.client.update_run(run_id, status="RUNNING")
            for tag, value in tags.items():
                self.client.set_tag(run_id, tag, value)
        # Ctrl-C and Prefect's cancelling raise no `Exception`.
        status = "KILLED"
        try:
            yield run_id
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            softly(f"the end of {name} is not logged", lambda: self.client.set_terminated(run_id, status))


def softly(consequence: str, call: Callable[[], None]) -> None:
    """Make an MLflow call that a run can do without; if it fails, log in one line what is missing."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - object stores of artifacts raise errors of their own
        say(f"MLflow has failed ({textwrap.shorten(first_line(error), _REASON_CHARACTERS)}); {consequence}")


def _lineage_of(manifest: Manifest) -> tuple[Lineage, ...]:
    """Where the initial weights of a training came from; empty for other stages."""
    return manifest.statistics_as(TrainingStatistics).lineage if "lineage" in manifest.statistics else ()


def _settings_of(whole: WholeRecipe) -> dict[str, Any]:
    return {name: section.model_dump(mode="json") for name, section in whole.sections().items()}


def _batches(values: list[ItemT]) -> Iterator[list[ItemT]]:
    for start in range(0, len(values), _MAX_VALUES_PER_REQUEST):
        yield values[start : start + _MAX_VALUES_PER_REQUEST]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_PARAMETER_LENGTH else text[: _MAX_PARAMETER_LENGTH - 3] + "..."
