"""Gather what a run produced into `report.json` and `report.md`, and show it as a short table."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.local_server import LOOPBACK
from flows.stage_run import FlowOutcome, StageOutcome, shown_seconds
from flows.whole_recipe import WholeRecipe
from pipelines import storage
from pipelines.contract import read_manifest
from training.stages import PRETRAINED, RANDOM

JSON_NAME, MARKDOWN_NAME = "report.json", "report.md"
UNKNOWN = "-"

Facts = dict[str, Any]


def gather(whole: WholeRecipe, outcome: FlowOutcome, tracking_uri: str, prefect_home: str | None) -> Facts:
    """All facts of a run, from its manifests; a fact that a manifest does not state is None."""
    statistics = _statistics(outcome.stages)
    return {
        "run": whole.run.name,
        "recipe": whole.recipe.path,
        "overrides": list(whole.recipe.overrides),
        "workspace": whole.run.workspace,
        "corpus": _corpus(statistics),
        "pretraining": statistics.get("pretraining", {}),
        "tasks": _tasks(whole, statistics),
        "stages": [{"stage": stage.stage, "built": stage.built, "seconds": stage.seconds} for stage in outcome.stages],
        "models": [{"uri": model.uri, **model.model_dump()} for model in outcome.models],
        "commands": commands(tracking_uri, prefect_home),
        "tracking_uri": tracking_uri,
    }


def commands(tracking_uri: str, prefect_home: str | None) -> dict[str, str]:
    """The commands that open the pages; a server that runs already needs none."""
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
    """How to call a program of this environment from here, whether or not the environment is activated."""
    path = os.path.join(os.path.dirname(sys.executable), name)
    relative = os.path.relpath(path)
    return shlex.quote(path if relative.startswith(os.pardir) else relative)


def write_report(whole: WholeRecipe, facts: Facts) -> dict[str, str]:
    """Write both files into the workspace; returns their contents by name."""
    contents = {
        JSON_NAME: json.dumps(facts, indent=1, ensure_ascii=False) + "\n",
        MARKDOWN_NAME: markdown(facts),
    }
    for name, text in contents.items():
        storage.write_bytes(storage.join(whole.run.workspace, name), text.encode())
    return contents


def markdown(facts: Facts) -> str:
    """The report as a page of Markdown."""
    lines = [f"# {facts['run']}", "", f"Recipe `{facts['recipe']}`, workspace `{facts['workspace']}`."]
    if facts["overrides"]:
        lines.append("Overrides: " + ", ".join(f"`{override}`" for override in facts["overrides"]) + ".")
    lines += ["", *_markdown_table(("", ""), _result_rows(facts))]
    lines += ["", "## Stages", "", *_markdown_table(("stage", "time"), _stage_rows(facts))]
    if facts["models"]:
        lines += ["", "## Models", "", *_markdown_table(("URI", "version"), _model_rows(facts))]
    if facts["commands"]:
        lines += ["", "## Pages", "", *(f"    {command}" for command in facts["commands"].values())]
    return "\n".join(lines) + "\n"


def show(facts: Facts, console: Console) -> None:
    """Print the short table, the registry's URIs and the commands that open the pages."""
    table = Table(title=facts["run"], title_justify="left", show_header=False)
    for row in _result_rows(facts):
        table.add_row(*row)
    table.add_section()
    for row in _stage_rows(facts):
        table.add_row(*row)
    console.print()
    console.print(table)
    for uri, version in _model_rows(facts):
        console.print(f"model    {uri} (version {version})", soft_wrap=True, markup=False)
    console.print(f"report   {storage.join(facts['workspace'], MARKDOWN_NAME)}", soft_wrap=True, markup=False)
    for name, command in facts["commands"].items():
        console.print(f"{name:<8} {command}", soft_wrap=True, markup=False)


def _statistics(stages: Iterable[StageOutcome]) -> dict[str, Mapping[str, Any]]:
    manifests = {name: read_manifest(directory) for stage in stages for name, directory in stage.directories.items()}
    return {name: manifest.statistics for name, manifest in manifests.items() if manifest is not None}


def _corpus(statistics: Mapping[str, Mapping[str, Any]]) -> Facts:
    documents, vocabulary = statistics.get("documents", {}), statistics.get("vocabulary", {})
    lengths = statistics.get("examples", {}).get("lengths", {})
    return {
        "documents_read": documents.get("documents_read"),
        "documents_kept": documents.get("documents_kept"),
        "documents_rejected": documents.get("documents_rejected"),
        "rejected_by_reason": documents.get("rejected_by_reason", {}),
        "heldout_documents": documents.get("heldout_documents"),
        "sentences": documents.get("sentences"),
        "characters": documents.get("characters"),
        "vocabulary_size": vocabulary.get("size"),
        "distinct_words": vocabulary.get("distinct_words"),
        "examples": _total(lengths, "examples"),
        "example_tokens": _total(lengths, "tokens"),
        "lengths": lengths,
    }


def _total(lengths: Mapping[str, Mapping[str, Any]], key: str) -> int | None:
    values = [length[key] for length in lengths.values() if key in length]
    return sum(values) if values else None


def _tasks(whole: WholeRecipe, statistics: Mapping[str, Mapping[str, Any]]) -> list[Facts]:
    tasks = []
    for task in whole.finetuning.tasks:
        trial = statistics.get(f"{task}/{PRETRAINED}", {})
        tasks.append(
            {
                "task": task,
                "metric": trial.get("metric"),
                "pretrained": trial.get("score"),
                "random": statistics.get(f"{task}/{RANDOM}", {}).get("score"),
                "majority_baseline": trial.get("majority_baseline"),
                "train_rows": trial.get("train_rows"),
                "dev_rows": trial.get("dev_rows"),
            }
        )
    return tasks


def _result_rows(facts: Facts) -> list[tuple[str, str]]:
    corpus, pretraining = facts["corpus"], facts["pretraining"]
    before, after = pretraining.get("heldout_before", {}), pretraining.get("heldout_after", {})
    kept = f"{_count(corpus['documents_kept'])} of {_count(corpus['documents_read'])} read"
    rows = [
        ("documents", f"{kept}, {_count(corpus['heldout_documents'])} held out"),
        ("examples", f"{_count(corpus['examples'])} with {_count(corpus['example_tokens'])} tokens"),
        ("vocabulary", f"{_count(corpus['vocabulary_size'])} of {_count(corpus['distinct_words'])} distinct words"),
        ("encoder", f"{_count(pretraining.get('parameters'))} parameters, {_count(pretraining.get('steps'))} steps"),
        ("deviations from BERT", pretraining.get("deviations", UNKNOWN)),
    ]
    for key, label in (("mlm_accuracy", "MLM accuracy, held out"), ("nsp_accuracy", "NSP accuracy, held out")):
        if key == "nsp_accuracy" and after and key not in after:
            continue
        rows.append((label, f"{_score(before.get(key))} -> {_score(after.get(key))}"))
    for task in facts["tasks"]:
        text = f"{_score(task['pretrained'])} pre-trained, {_score(task['random'])} from random weights"
        rows.append(
            (f"{task['task']}, {task['metric'] or UNKNOWN}", f"{text}, {_score(task['majority_baseline'])} majority")
        )
    return rows


def _stage_rows(facts: Facts) -> list[tuple[str, str]]:
    return [(stage["stage"], _stage_time(stage)) for stage in facts["stages"]]


def _stage_time(stage: Facts) -> str:
    seconds = UNKNOWN if stage["seconds"] is None else shown_seconds(stage["seconds"])
    return seconds if stage["built"] else f"skipped (took {seconds} before)"


def _model_rows(facts: Facts) -> list[tuple[str, str]]:
    return [(model["uri"], model["version"]) for model in facts["models"]]


def _count(value: Any) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _score(value: Any) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"


def _markdown_table(header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> list[str]:
    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    return [*lines, *(f"| {left} | {right} |" for left, right in rows)]
