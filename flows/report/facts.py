"""Gather what a run produced into `report.json`, `report.md` and `report.html`, and show it as a short table."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.console.tables import shown
from flows.parameters.whole_recipe import WholeRecipe
from flows.report import samples as report_samples
from flows.report.page import html_page
from flows.report.samples import sampled
from flows.running.outcomes import FlowOutcome, shown_seconds
from flows.servers.local_server import LOOPBACK
from pipelines.contract import storage
from pipelines.contract.credentials import redacted
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, read_manifest
from pipelines.contract.workspace import (
    DOCUMENTS,
    EXAMPLES,
    FINETUNING,
    MANIFEST_NAME,
    PRETRAINED,
    PRETRAINING,
    RANDOM,
    VOCABULARY,
)
from training.tracking.flattening import flatten

JSON_NAME, MARKDOWN_NAME, PAGE_NAME = "report.json", "report.md", "report.html"
UNKNOWN = "-"
WARNING_CHARACTERS = 600
TEXT_FIGURES = ("unk_share", "masked_unk_share", "pieces_per_word", "tokens_cut")
"""What vocabulary and examples may say of how well they fit the text."""
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

    A fact that a manifest does not state is None; a part that cannot be read is {"problem": why}.
    """
    directories = {name: directory for stage in outcome.stages for name, directory in stage.directories.items()}
    manifests = _manifests(directories)
    statistics = {name: manifest.statistics for name, manifest in manifests.items()}
    return {
        "run": whole.run.name,
        "recipe": whole.recipe.path,
        "overrides": list(whole.recipe.overrides),
        "workspace": whole.run.workspace,
        "warnings": _warnings(manifests),
        "corpus": _corpus(manifests),
        **_samples(directories, manifests),
        "model": whole.model.identity(),
        "phases": [phase.identity() for phase in whole.pretraining.phases],
        "pretraining": dict(statistics.get(PRETRAINING, {})),
        "tasks": _tasks(whole, statistics),
        "stages": [{"stage": stage.stage, "built": stage.built, "seconds": stage.seconds} for stage in outcome.stages],
        "models": [{"uri": model.uri, **model.model_dump()} for model in outcome.models],
        "commands": commands(tracking_uri, prefect_home),
        "tracking_uri": redacted(tracking_uri),
        "origin": _origin(whole, manifests),
        "versions": versions(),
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


def versions() -> dict[str, str]:
    """Versions of this environment and what it runs on, without the machine's name."""
    found = {"Python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"platform": platform.platform(), "processor cores": str(os.cpu_count() or UNKNOWN)}


def page_url(workspace: str) -> str:
    """Where a browser finds the page."""
    uri = storage.join(workspace, PAGE_NAME)
    return f"file://{urllib.parse.quote(storage.local_path(uri))}" if storage.is_local(uri) else uri


def write_report(whole: WholeRecipe, facts: Facts) -> dict[str, str]:
    """Write the three files into the workspace; returns their contents by name."""
    contents = {
        JSON_NAME: json.dumps(facts, indent=1, ensure_ascii=False) + "\n",
        MARKDOWN_NAME: markdown(facts),
        PAGE_NAME: html_page(facts),
    }
    for name, text in contents.items():
        storage.write_bytes(storage.join(whole.run.workspace, name), text.encode())
    return contents


def markdown(facts: Facts) -> str:
    """The report as a page of Markdown."""
    lines = [f"# {facts['run']}", "", f"Recipe `{shown(facts['recipe'])}`, workspace `{shown(facts['workspace'])}`."]
    if facts["overrides"]:
        lines.append("Overrides: " + ", ".join(f"`{shown(override)}`" for override in facts["overrides"]) + ".")
    lines += [f"\nWarning, {each['stage']}: {shown(each['text'])}" for each in facts["warnings"]]
    lines += ["", *_markdown_table(("", ""), _result_rows(facts))]
    lines += ["", "## Stages", "", *_markdown_table(("stage", "time"), _stage_rows(facts))]
    if facts["models"]:
        lines += ["", "## Models", "", *_markdown_table(("URI", "version"), _model_rows(facts))]
    if facts["commands"]:
        lines += ["", "## Pages", "", *(f"    {command}" for command in facts["commands"].values())]
    return "\n".join(lines) + "\n"


def show(facts: Facts, console: Console) -> None:
    """Print the short table, the registry's URIs, the commands that open the pages and, last, where the report is."""
    table = Table(title=facts["run"], title_justify="left", show_header=False)
    for row in _result_rows(facts):
        table.add_row(*map(Text, map(shown, row)))
    table.add_section()
    for row in _stage_rows(facts):
        table.add_row(*map(Text, map(shown, row)))
    console.print()
    console.print(table)
    for each in facts["warnings"]:
        console.print(f"warning  {each['stage']}: {shown(each['text'])}", soft_wrap=True, markup=False)
    for uri, version in _model_rows(facts):
        console.print(f"model    {uri} (version {version})", soft_wrap=True, markup=False)
    for name, command in facts["commands"].items():
        console.print(f"{name:<8} {command}", soft_wrap=True, markup=False)
    console.print(f"report   {page_url(facts['workspace'])}", soft_wrap=True, markup=False)


def _manifests(directories: Mapping[str, str]) -> dict[str, Manifest]:
    found = {name: read_manifest(directory) for name, directory in directories.items()}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _warnings(manifests: Mapping[str, Manifest]) -> list[Facts]:
    """What the stages' manifests warn of, in the order of the stages; texts may quote a corpus."""
    return [
        {"stage": stage, "text": report_samples.printable(str(warning), WARNING_CHARACTERS)}
        for stage, manifest in manifests.items()
        for warning in manifest.statistics.get("warnings", [])
    ]


def _samples(directories: Mapping[str, str], manifests: Mapping[str, Manifest]) -> Facts:
    """What the page shows of single files; empty for a stage that the run does not have."""
    tokens: list[str] = []

    def rejects() -> Facts:
        reasons = manifests[DOCUMENTS].statistics.get("rejected_by_reason", {})
        return report_samples.reject_samples(directories[DOCUMENTS], reasons) if reasons else {}

    def vocabulary() -> Facts:
        tokens.extend(report_samples.read_vocabulary(directories[VOCABULARY]))
        return report_samples.vocabulary_sample(tokens)

    def examples() -> Facts:
        return report_samples.example_samples(directories[EXAMPLES], manifests[EXAMPLES], tokens)

    def curves() -> Facts:
        return report_samples.curves(directories[PRETRAINING])

    parts = (
        ("rejects", DOCUMENTS, rejects),
        ("vocabulary", VOCABULARY, vocabulary),
        ("examples", EXAMPLES, examples),
        ("curves", PRETRAINING, curves),
    )
    return {name: sampled(read) if stage in manifests else {} for name, stage, read in parts}


def _origin(whole: WholeRecipe, manifests: Mapping[str, Manifest]) -> Facts:
    """What it takes to run the same again: command, seeds, recipe, and the digests that will show it was the same."""
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


def _corpus(manifests: Mapping[str, Manifest]) -> Facts:
    documents, vocabulary, examples = (
        manifests[name].statistics if name in manifests else {} for name in (DOCUMENTS, VOCABULARY, EXAMPLES)
    )
    lengths = examples.get("lengths", {})
    config = manifests[DOCUMENTS].config if DOCUMENTS in manifests else {}
    return {
        "sources": [
            {"format": source.get("format"), "inputs": source.get("inputs", [])} for source in config.get("sources", [])
        ],
        "documents_read": documents.get("documents_read"),
        "documents_kept": documents.get("documents_kept"),
        "documents_rejected": documents.get("documents_rejected"),
        "rejected_by_reason": documents.get("rejected_by_reason", {}),
        "heldout_documents": documents.get("heldout_documents"),
        "sentences": documents.get("sentences"),
        "characters": documents.get("characters"),
        "cleaning": documents.get("cleaning", {}),
        "vocabulary_size": vocabulary.get("size"),
        "distinct_words": vocabulary.get("distinct_words"),
        "examples": _total(lengths, "examples"),
        "example_tokens": _total(lengths, "tokens"),
        "lengths": lengths,
        "text_figures": [
            {"stage": stage, "figure": name, "value": found[name]}
            for stage, found in ((VOCABULARY, vocabulary), (EXAMPLES, examples))
            for name in TEXT_FIGURES
            if isinstance(found.get(name), int | float)
        ],
    }


def _total(lengths: Mapping[str, Mapping[str, Any]], key: str) -> int | None:
    values = [length[key] for length in lengths.values() if key in length]
    return sum(values) if values else None


def _tasks(whole: WholeRecipe, statistics: Mapping[str, Mapping[str, Any]]) -> list[Facts]:
    """The recipe's tasks in its order, then those that lie in the workspace besides."""
    trials: dict[str, Mapping[str, Any]] = {f"{task}/{PRETRAINED}": {} for task in whole.finetuning.tasks}
    trials |= _trials_in_workspace(whole)
    trials |= statistics
    tasks: dict[str, Facts] = {}
    for name, trial in trials.items():
        task, _, start = name.rpartition("/")
        if start not in (PRETRAINED, RANDOM):
            continue
        in_recipe = task in whole.finetuning.tasks
        found = tasks.setdefault(
            task,
            {
                "task": task,
                "metric": None,
                "pretrained": None,
                "random": None,
                "majority_baseline": None,
                "train_rows": None,
                "dev_rows": None,
                "in_recipe": in_recipe,
            },
        )
        found[start] = trial.get("score")
        for key in ("metric", "majority_baseline", "train_rows", "dev_rows"):
            found[key] = trial.get(key) if found[key] is None else found[key]
        if "problem" in trial:
            found["problem"] = trial["problem"]
    return list(tasks.values())


def _trials_in_workspace(whole: WholeRecipe) -> dict[str, Mapping[str, Any]]:
    """Statistics of every fine-tuning trial that is complete, by `task/start`; of no other manifest there."""
    root = storage.join(whole.run.workspace, FINETUNING)
    found: dict[str, Mapping[str, Any]] = {}
    for name in storage.list_files(root):
        trial, _, file = name.rpartition("/")
        if file != MANIFEST_NAME or trial.rpartition("/")[2] not in (PRETRAINED, RANDOM):
            continue
        try:
            manifest = read_manifest(storage.join(root, trial))
        except InputError as error:
            found[trial] = {"problem": str(error)}
            continue
        assert manifest is not None, trial
        if "score" in manifest.statistics:
            found[trial] = manifest.statistics
    return found


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
        text = f"{_score(task['pretrained'])} pre-trained"
        # Without finetuning.compare_with_random there is no second score.
        if task["random"] is not None or task["pretrained"] is None:
            text += f", {_score(task['random'])} from random weights"
        rows.append(
            (f"{task['task']}, {task['metric'] or UNKNOWN}", f"{text}, {_score(task['majority_baseline'])} majority")
        )
    return rows


def _stage_rows(facts: Facts) -> list[tuple[str, str]]:
    return [(stage["stage"], _stage_time(stage)) for stage in facts["stages"]]


def _stage_time(stage: Facts) -> str:
    seconds = UNKNOWN if stage["seconds"] is None else shown_seconds(stage["seconds"])
    if stage["built"]:
        return seconds
    return "skipped" if stage["seconds"] is None else f"skipped (took {seconds} before)"


def _model_rows(facts: Facts) -> list[tuple[str, str]]:
    return [(model["uri"], model["version"]) for model in facts["models"]]


def _count(value: Any) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _score(value: Any) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"


def _markdown_table(header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> list[str]:
    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    return [*lines, *(f"| {left} | {right} |" for left, right in rows)]
