"""The report as one self-contained HTML page: a pure function of the facts, without scripts and outside resources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flows.report import data_sections, origin_sections, result_sections
from flows.report.html import UNKNOWN, count, foreign, large, paragraph, percent, score, section, text
from flows.report.style import STYLE

Facts = dict[str, Any]


class Section(NamedTuple):
    """A part of the page, below its heading and in the list of links."""

    identifier: str
    title: str
    content: Callable[[Facts], str]
    """Facts to HTML; empty where the workspace tells nothing of this."""


SECTIONS = (
    Section("corpus", "Corpus", data_sections.corpus),
    Section("vocabulary", "Vocabulary", data_sections.vocabulary),
    Section("examples", "Examples", data_sections.examples),
    Section("training", "Pre-training", result_sections.training),
    Section("tasks", "Tasks", result_sections.tasks),
    Section("timings", "Timings", result_sections.timings),
    Section("models", "Models", origin_sections.models),
    Section("reproduce", "Reproduce", origin_sections.reproduce),
)
"""The sections in the order of the page; a new one is a function and a row here."""

# The page may fetch nothing, whatever a corpus might smuggle into it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_SHOWN_TASKS = 3


def html_page(facts: Facts) -> str:
    """The page; equal facts give equal bytes.

    Args:
        facts: what `flows.report.facts.gather` returns, or the same read back from report.json.
    """
    title = f"{facts['run']} - Clozeworks"
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        # Without an icon a browser asks the server for one.
        '<link rel="icon" href="data:,">',
        f"<title>{text(title)}</title>",
        f"<style>{STYLE}</style>",
    ]
    sections = [section(each.identifier, each.title, each.content(facts)) for each in SECTIONS]
    body = ["<header>", *_header(facts), "</header>", "<main>", *sections, "</main>"]
    lines = ['<!doctype html>\n<html lang="en">\n<head>', *head, "</head>\n<body>", *body, "</body>\n</html>"]
    return "\n".join(lines) + "\n"


def _header(facts: Facts) -> list[str]:
    links = "".join(f'<a href="#{identifier}">{name}</a>' for identifier, name, _ in SECTIONS)
    return [
        '<p class="kicker">Clozeworks report</p>',
        f"<h1>{text(facts['run'])}</h1>",
        paragraph(text(_sentence(facts)), css="lead"),
        _warnings(facts),
        _results(facts),
        f'<nav aria-label="Sections">{links}</nav>',
    ]


def _warnings(facts: Facts) -> str:
    """What stages warn of: the first thing that a reader should see; nothing where there is none."""
    warnings = facts.get("warnings", [])
    if not warnings:
        return ""
    items = "".join(f"<li>{text(each['stage'])}: {foreign(each['text'])}</li>" for each in warnings)
    return f'<aside class="warnings" aria-labelledby="warnings"><h2 id="warnings">Warnings</h2><ul>{items}</ul></aside>'


def _sentence(facts: Facts) -> str:
    found, model = facts["pretraining"], facts["model"]
    if not found:
        return "Nothing has been pre-trained in this workspace yet."
    shape = f"A BERT with {model['num_hidden_layers']} layers and {large(found.get('parameters'))} parameters"
    amount = f"{large(found.get('tokens'))} tokens in {count(found.get('steps'))} steps"
    return f"{shape}, pre-trained from raw text on {amount}."


def _results(facts: Facts) -> str:
    before, after = (facts["pretraining"].get(name, {}) for name in ("heldout_before", "heldout_after"))
    cards = [
        _card(label, percent(after[name]), f"{percent(before.get(name))} before training")
        for name, label in (
            ("mlm_accuracy", "Masked tokens right, held out"),
            ("nsp_accuracy", "Next sentence right, held out"),
        )
        if name in after
    ]
    cards += [_task_card(task) for task in _headline_tasks(facts["tasks"])]
    return f'<dl class="results">{"".join(cards)}</dl>' if cards else ""


def _headline_tasks(tasks: Sequence[Facts]) -> list[Facts]:
    return [task for task in tasks if task["in_recipe"] and task["pretrained"] is not None][:_SHOWN_TASKS]


def _task_card(task: Facts) -> str:
    metric = task["metric"]
    compared = []
    if task["random"] is not None:
        compared.append(f"{score(metric, task['random'])} from random weights ({result_sections.gain(task)})")
    if task["majority_baseline"] is not None:
        compared.append(f"{score(metric, task['majority_baseline'])} majority")
    return _card(f"{task['task']}, {metric or UNKNOWN}", score(metric, task["pretrained"]), ", ".join(compared))


def _card(label: str, value: str, compared: str) -> str:
    details = f'<dd class="before">{text(compared)}</dd>' if compared else ""
    return f'<div><dt>{text(label)}</dt><dd class="value">{text(value)}</dd>{details}</div>'
