"""Results of a run as artifacts on Prefect's page: tables, the report, and links.

All of them are read from manifests and files of the workspace.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from flows.console.tables import shown
from flows.parameters.whole_recipe import WholeRecipe
from flows.report.manifest_facts import corpus_facts, length_order
from flows.running.outcomes import FlowOutcome
from flows.running.progress_bar import artifact_key
from flows.servers.artifact_calls import told_to_prefect
from flows.tracking.mlflow_pages import run_page
from pipelines.contract import storage
from pipelines.contract.manifest import Manifest, read_manifest
from pipelines.contract.statistics import StageWarnings
from pipelines.contract.workspace import DOCUMENTS, EXAMPLES, FINETUNING, PRETRAINING, VOCABULARY
from pipelines.statistics.training import PretrainingStatistics, TrialStatistics
from training.stages.finetuning import SWEEP


@told_to_prefect
def tell_corpus(whole: WholeRecipe, outcome: FlowOutcome) -> None:
    """Create the table of documents read and kept, vocabulary and examples."""
    manifests = _manifests(outcome)
    rows = [
        {"stage": stage, "fact": name.replace("_", " "), "value": value}
        for stage in (DOCUMENTS, VOCABULARY)
        for name, value in _plain_facts(manifests.get(stage))
    ]
    rows += [
        {"stage": stage, "fact": "warning", "value": shown(warning)}
        for stage, manifest in manifests.items()
        for warning in manifest.statistics_as(StageWarnings).warnings
    ]
    corpus, _ = corpus_facts(manifests)
    for length, facts in sorted(corpus.lengths.items(), key=lambda item: length_order(item[0])):
        values = {
            "examples": facts.examples,
            "tokens": facts.tokens,
            "mean_length": facts.mean_length,
            "masked_share": facts.masked_share,
            "random_next_share": facts.random_next_share,
        }
        rows += [
            {"stage": EXAMPLES, "fact": f"{name} of length {length}", "value": value} for name, value in values.items()
        ]
    rows += [
        {"stage": EXAMPLES, "fact": f"share of {source} among the tokens of {name or EXAMPLES}", "value": facts.share}
        for name, sources in corpus.mixtures.items()
        for source, facts in sources.items()
    ]
    if rows:
        create_table_artifact(rows, artifact_key(whole.run.name, "corpus"), "Corpus, vocabulary and examples")


@told_to_prefect
def tell_pretraining(whole: WholeRecipe, outcome: FlowOutcome) -> None:
    """Create the table of held-out metrics before and after training."""
    manifest = _manifests(outcome).get(PRETRAINING)
    if manifest is None:
        return
    trained = manifest.statistics_as(PretrainingStatistics)
    rows = [
        {
            "metric": metric.label,
            "unit": metric.unit,
            "before": trained.heldout_before.get(metric.name),
            "after": trained.heldout[metric.name],
            "better": "more" if metric.more_is_better else "less",
        }
        for metric in trained.metrics
        if metric.name in trained.heldout
    ]
    if rows:
        create_table_artifact(rows, artifact_key(whole.run.name, "heldout"), "Held-out examples")


@told_to_prefect
def tell_scores(whole: WholeRecipe, outcome: FlowOutcome) -> None:
    """Create the table of development scores of the fine-tuned tasks."""
    rows = []
    tuned = FlowOutcome(stages=tuple(stage for stage in outcome.stages if stage.stage in (FINETUNING, SWEEP)))
    for name, manifest in sorted(_manifests(tuned).items()):
        task, _, start = name.partition("/")
        trial = manifest.statistics_as(TrialStatistics)
        rows.append(
            {
                "task": task,
                "from": start,
                "metric": trial.metric,
                "score": trial.score,
                "majority_baseline": trial.majority_baseline,
                "train_rows": trial.train_rows,
                "dev_rows": trial.dev_rows,
            }
        )
    if rows:
        create_table_artifact(rows, artifact_key(whole.run.name, "scores"), "Development scores")


@told_to_prefect
def tell_report(whole: WholeRecipe, markdown: str, tracking_uri: str, experiment_id: str, run_id: str) -> None:
    """Create the report, and links to the workspace and, if it has a page, to the run in MLflow."""
    name = whole.run.name
    create_markdown_artifact(markdown, artifact_key(name, "report"), "Report of the run")
    workspace = whole.run.workspace
    address = Path(storage.local_path(workspace)).as_uri() if whole.is_local else workspace
    create_link_artifact(address, workspace, artifact_key(name, "workspace"), "Workspace, as the worker sees it")
    if tracking_uri.startswith(("http://", "https://")):
        page = run_page(tracking_uri, experiment_id, run_id)
        create_link_artifact(page, "MLflow run", artifact_key(name, "mlflow"), "Curves, parameters, lineage, models")


def _manifests(outcome: FlowOutcome) -> dict[str, Manifest]:
    found = {
        name: read_manifest(directory) for stage in outcome.stages for name, directory in stage.directories.items()
    }
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _plain_facts(manifest: Manifest | None) -> list[tuple[str, Any]]:
    if manifest is None:
        return []
    facts: list[tuple[str, Any]] = []
    for name, value in manifest.statistics.items():
        if isinstance(value, (int, float, str)):
            facts.append((name, value))
        elif isinstance(value, Mapping):
            facts += [(f"{name}: {key}", item) for key, item in value.items() if isinstance(item, (int, float, str))]
    return facts
