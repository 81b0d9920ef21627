"""Gather the results of a run, as JSON values."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from flows.parameters.whole_recipe import WholeRecipe
from flows.report import samples as report_samples
from flows.report.cost import cost_facts
from flows.report.html import UNKNOWN
from flows.report.manifest_facts import CorpusFacts, corpus_facts, task_facts
from flows.report.samples import sampled
from flows.running.outcomes import FlowOutcome
from flows.servers.local_server import LOOPBACK
from pipelines.contract.credentials import redacted
from pipelines.contract.manifest import Manifest, read_manifest
from pipelines.contract.statistics import StageWarnings
from pipelines.contract.workspace import DOCUMENTS, EXAMPLES, PRETRAINING, VOCABULARY
from pipelines.statistics.metrics import LOSS
from pipelines.statistics.training import PretrainingStatistics
from training.alarms.reference_curve import read_reference
from training.stages.budgets import about_steps
from training.tracking.flattening import flatten

WARNING_CHARACTERS = 600
DISTRIBUTIONS = (
    "clozeworks",
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "apache-beam",
    "pyarrow",
    "numpy",
    "prefect",
    "mlflow",
)

Facts = dict[str, Any]


def gather(whole: WholeRecipe, outcome: FlowOutcome, tracking_uri: str, prefect_home: str | None) -> Facts:
    """All facts of a run, as JSON values, from its manifests and small portions of its files.

    A fact that is not in a manifest is None; a part that cannot be read is {"problem": reason}.
    """
    directories = {name: directory for stage in outcome.stages for name, directory in stage.directories.items()}
    manifests = _manifests(directories)
    corpus, left_out = corpus_facts(manifests)
    return {
        "run": whole.run.name,
        "recipe": whole.recipe.path,
        "overrides": list(whole.recipe.overrides),
        "workspace": whole.run.workspace,
        "warnings": _warnings(manifests, left_out),
        "corpus": corpus.model_dump(),
        **_samples(whole, directories, manifests, corpus),
        "model": _model(whole, manifests),
        "phases": _phases(whole, manifests),
        "pretraining": dict(manifests[PRETRAINING].statistics) if PRETRAINING in manifests else {},
        "tasks": [task.to_json() for task in task_facts(whole, manifests)],
        "cost": cost_facts(whole, outcome, manifests),
        "stages": [{"stage": stage.stage, "built": stage.built, "seconds": stage.seconds} for stage in outcome.stages],
        "models": [{"uri": model.uri, **model.model_dump()} for model in outcome.models],
        "commands": commands(tracking_uri, prefect_home),
        "tracking_uri": redacted(tracking_uri),
        "origin": _origin(whole, manifests),
        "versions": versions(),
    }


def commands(tracking_uri: str, prefect_home: str | None) -> dict[str, str]:
    """Commands that open the pages; none for a server that is already running."""
    found = {}
    if not tracking_uri.startswith(("http://", "https://")):
        found["mlflow"] = (
            f"{_program('mlflow')} server --backend-store-uri {shlex.quote(tracking_uri)} --host {LOOPBACK}"
        )
    if prefect_home is not None:
        found["prefect"] = (
            f"PREFECT_HOME={shlex.quote(prefect_home)} {_program('prefect')} server start --host {LOOPBACK}"
        )
    return found


def _program(name: str) -> str:
    """Path to call a program of this environment from here, whether or not the environment is activated."""
    path = os.path.join(os.path.dirname(sys.executable), name)
    relative = os.path.relpath(path)
    return shlex.quote(path if relative.startswith(os.pardir) else relative)


def versions() -> dict[str, str]:
    """Versions of this environment and its platform, without the machine's name."""
    found = {"Python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"platform": platform.platform(), "processor cores": str(os.cpu_count() or UNKNOWN)}


def _manifests(directories: Mapping[str, str]) -> dict[str, Manifest]:
    found = {name: read_manifest(directory) for name, directory in directories.items()}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _phases(whole: WholeRecipe, manifests: Mapping[str, Manifest]) -> list[Facts]:
    """The phases, each with the number of steps that it took, about; None if nothing says so."""
    steps = about_steps(whole.pretraining, manifests.get(EXAMPLES))
    counts: Sequence[int | None] = steps or [None] * len(whole.pretraining.phases)
    return [
        {**phase.identity(), "about_steps": count}
        for phase, count in zip(whole.pretraining.phases, counts, strict=True)
    ]


def _model(whole: WholeRecipe, manifests: Mapping[str, Manifest]) -> Facts:
    """The trained architecture: an initial encoder may have decided it, and may not be on this machine."""
    trained = manifests[PRETRAINING].config.get("model") if PRETRAINING in manifests else None
    return trained or whole.model.identity()


def _warnings(manifests: Mapping[str, Manifest], left_out: Mapping[str, str]) -> list[Facts]:
    """Warnings in the manifests, or why they cannot be read, in the order of the stages; texts may quote a corpus."""
    return [
        {"stage": stage, "text": report_samples.printable(warning, WARNING_CHARACTERS)}
        for stage, manifest in manifests.items()
        for warning in ([left_out[stage]] if stage in left_out else manifest.statistics_as(StageWarnings).warnings)
    ]


def _samples(
    whole: WholeRecipe, directories: Mapping[str, str], manifests: Mapping[str, Manifest], corpus: CorpusFacts
) -> Facts:
    """Samples of single files for the page; empty for a stage that the run does not have."""
    tokens: list[str] = []

    def rejects() -> Facts:
        reasons = corpus.rejected_by_reason
        return report_samples.reject_samples(directories[DOCUMENTS], reasons) if reasons else {}

    def vocabulary() -> Facts:
        tokens.extend(report_samples.read_vocabulary(directories[VOCABULARY]))
        return report_samples.vocabulary_sample(tokens)

    def examples() -> Facts:
        return report_samples.example_samples(directories[EXAMPLES], manifests[EXAMPLES], tokens)

    def curves() -> Facts:
        metrics = manifests[PRETRAINING].statistics_as(PretrainingStatistics).metrics
        names = [metric.name for metric in metrics if metric.unit in ("nats", "share") and metric != LOSS]
        return report_samples.curves(directories[PRETRAINING], [*names, "tokens_per_second", "tokens"])

    def reference() -> Facts:
        source = whole.pretraining.reference
        return read_reference(source).model_dump(mode="json", include={"name", "about", "curves"}) if source else {}

    parts = (
        ("rejects", DOCUMENTS, rejects),
        ("vocabulary", VOCABULARY, vocabulary),
        ("examples", EXAMPLES, examples),
        ("curves", PRETRAINING, curves),
        ("reference", PRETRAINING, reference),
    )
    return {name: sampled(read) if stage in manifests else {} for name, stage, read in parts}


def _origin(whole: WholeRecipe, manifests: Mapping[str, Manifest]) -> Facts:
    """How to reproduce the run: command, seeds, recipe, and the digests to compare."""
    settings = {name: section.model_dump(mode="json") for name, section in whole.sections().items()}
    overrides = [argument for override in whole.recipe.overrides for argument in ("--set", override)]
    arguments = shlex.join(["-m", "flows.end_to_end", whole.recipe.path, *overrides])

    def recipe_text() -> Facts:
        with open(whole.recipe.path, encoding="utf-8") as stream:
            return {"text": stream.read()}

    return {
        "command": f"{_program(os.path.basename(sys.executable))} {arguments}",
        "seeds": {name: value for name, value in flatten(settings).items() if name.rpartition(".")[2] == "seed"},
        "digests": {name: manifest.digest for name, manifest in manifests.items()},
        "recipe_text": sampled(recipe_text),
    }
