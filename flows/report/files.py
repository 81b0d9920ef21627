"""The report's files: the facts as `report.json`, `report.md` and `report.html`, and a short table on the terminal."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.console.tables import shown
from flows.parameters.whole_recipe import WholeRecipe
from flows.report.html import UNKNOWN
from flows.report.manifest_facts import CorpusFacts, TaskFacts
from flows.report.page import html_page
from flows.running.outcomes import shown_seconds
from pipelines.contract import storage
from pipelines.statistics.training import PretrainingStatistics

JSON_NAME, MARKDOWN_NAME, PAGE_NAME = "report.json", "report.md", "report.html"

Facts = dict[str, Any]


def page_url(workspace: str) -> str:
    """URL of the page for a browser."""
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
    """Print the short table, the registry's URIs, the commands that open the pages and, last, the report's URL."""
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


def _result_rows(facts: Facts) -> list[tuple[str, str]]:
    corpus = CorpusFacts.model_validate(facts["corpus"])
    pretraining = PretrainingStatistics.model_validate(facts["pretraining"])
    kept = f"{_count(corpus.documents_kept)} of {_count(corpus.documents_read)} read"
    rows = [
        ("documents", f"{kept}, {_count(corpus.heldout_documents)} held out"),
        ("examples", f"{_count(corpus.examples)} with {_count(corpus.example_tokens)} tokens"),
        ("vocabulary", f"{_count(corpus.vocabulary_size)} of {_count(corpus.distinct_words)} distinct words"),
        ("encoder", f"{_count(pretraining.parameters)} parameters, {_count(pretraining.steps)} steps"),
        ("deviations from BERT", pretraining.deviations or UNKNOWN),
    ]
    for metric in pretraining.heldout_metrics:
        if metric.unit == "share":
            scores = [_score(each.get(metric.name)) for each in (pretraining.heldout_before, pretraining.heldout)]
            rows.append((f"{metric.label}, held out", " -> ".join(scores)))
    for task in map(TaskFacts.model_validate, facts["tasks"]):
        text = f"{_score(task.pretrained)} pre-trained"
        # Without finetuning.compare_with_random there is no second score.
        if task.random is not None or task.pretrained is None:
            text += f", {_score(task.random)} from random weights"
        rows.append((f"{task.task}, {task.metric or UNKNOWN}", f"{text}, {_score(task.majority_baseline)} majority"))
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
