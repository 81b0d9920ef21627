"""The report as one self-contained HTML page: a pure function of the facts, without scripts or external resources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flows.report import data_sections, origin_sections, result_sections
from flows.report.cost import cost
from flows.report.html import UNKNOWN, count, foreign, large, metric_value, score, text
from flows.report.manifest_facts import TaskFacts
from pipelines.statistics.training import PretrainingStatistics

Facts = dict[str, Any]


class Section(NamedTuple):
    """A part of the page with its heading and its entry in the list of links."""

    identifier: str
    title: str
    content: Callable[[Facts], str]
    """Facts to HTML; empty if the workspace has no data for it."""


class Card(NamedTuple):
    """A result at the top of the page."""

    label: str
    value: str
    compared: str
    """Values to compare with; may be empty."""


SECTIONS = (
    Section("corpus", "Corpus", data_sections.corpus),
    Section("vocabulary", "Vocabulary", data_sections.vocabulary),
    Section("examples", "Examples", data_sections.examples),
    Section("training", "Pre-training", result_sections.training),
    Section("tasks", "Tasks", result_sections.tasks),
    Section("cost", "Cost", cost),
    Section("timings", "Timings", result_sections.timings),
    Section("models", "Models", origin_sections.models),
    Section("reproduce", "Reproduce", origin_sections.reproduce),
)
"""The sections in the order of the page; a new one is a function and a row here."""

_SHOWN_TASKS = 3


def html_page(facts: Facts) -> str:
    """The page; equal facts give equal bytes.

    Args:
        facts: from `flows.report.facts.gather`, or read back from report.json.
    """
    sections = [(each.identifier, each.title, each.content(facts)) for each in SECTIONS]
    return framed(facts["run"], _sentence(facts), facts.get("warnings", []), _results(facts), sections)


def framed(
    title: str,
    sentence: str,
    warnings: Sequence[Mapping[str, str]],
    results: Sequence[Card],
    sections: Sequence[tuple[str, str, str]],
) -> str:
    """A page in the report's frame; sections are identifier, title and HTML."""
    return _PAGE.render(
        style=_safe(_STYLE),
        run=title,
        sentence=sentence,
        warnings=warnings,
        results=results,
        sections=[(identifier, heading, _safe(content)) for identifier, heading, content in sections],
    )


def _safe(written: str) -> Markup:
    """Our own HTML, with text already escaped: the template inserts it unchanged."""
    return Markup(written)  # noqa: S704


def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("flows.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"text": lambda value: _safe(text(value)), "foreign": lambda value: _safe(foreign(value))}
    return found


_PAGE = _environment().get_template("page.html.jinja")
_STYLE = resources.files("flows.report").joinpath("style.css").read_text(encoding="utf-8")


def _sentence(facts: Facts) -> str:
    model = facts["model"]
    if not facts["pretraining"]:
        return "Nothing has been pre-trained in this workspace yet."
    found = PretrainingStatistics.model_validate(facts["pretraining"])
    shape = f"A BERT with {model['num_hidden_layers']} layers and {large(found.parameters)} parameters"
    amount = f"{large(found.tokens)} tokens in {count(found.steps)} steps"
    return f"{shape}, {'continued' if found.lineage else 'pre-trained from raw text'} on {amount}."


def _results(facts: Facts) -> list[Card]:
    found = PretrainingStatistics.model_validate(facts["pretraining"])
    before, after = found.heldout_before, found.heldout
    cards = [
        Card(
            f"{metric.label}, held out",
            metric_value(metric, after[metric.name]),
            f"{metric_value(metric, before.get(metric.name))} before training",
        )
        for metric in found.metrics
        if metric.unit == "share" and metric.name in after
    ]
    return cards + [_task_card(task) for task in _headline_tasks(facts)]


def _headline_tasks(facts: Facts) -> list[TaskFacts]:
    tasks = [TaskFacts.model_validate(task) for task in facts["tasks"]]
    return [task for task in tasks if task.in_recipe and task.pretrained is not None][:_SHOWN_TASKS]


def _task_card(task: TaskFacts) -> Card:
    metric = task.metric
    compared = []
    if task.random is not None:
        compared.append(f"{score(metric, task.random)} from random weights ({result_sections.gain(task)})")
    if task.majority_baseline is not None:
        compared.append(f"{score(metric, task.majority_baseline)} majority")
    return Card(f"{task.task}, {metric or UNKNOWN}", score(metric, task.pretrained), ", ".join(compared))
