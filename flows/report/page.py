"""The report as one self-contained HTML page: a pure function of the facts, without scripts and outside resources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows.report import data_sections as report_data
from flows.report import result_sections as report_results
from flows.report.html import (
    UNKNOWN,
    block,
    code,
    count,
    foreign,
    large,
    paragraph,
    percent,
    problem,
    score,
    section,
    table,
    text,
)
from flows.report.style import STYLE
from pipelines.contract.schemas import MASK

Facts = dict[str, Any]

SECTIONS = (
    ("corpus", "Corpus"),
    ("vocabulary", "Vocabulary"),
    ("examples", "Examples"),
    ("training", "Pre-training"),
    ("tasks", "Tasks"),
    ("timings", "Timings"),
    ("models", "Models"),
    ("reproduce", "Reproduce"),
)

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
    sections = [
        report_data.corpus(facts),
        report_data.vocabulary(facts),
        report_data.examples(facts),
        report_results.training(facts),
        report_results.tasks(facts),
        report_results.timings(facts),
        _models(facts),
        _reproduce(facts),
    ]
    body = ["<header>", *_header(facts), "</header>", "<main>", *sections, "</main>"]
    lines = ['<!doctype html>\n<html lang="en">\n<head>', *head, "</head>\n<body>", *body, "</body>\n</html>"]
    return "\n".join(lines) + "\n"


def _header(facts: Facts) -> list[str]:
    links = "".join(f'<a href="#{identifier}">{name}</a>' for identifier, name in SECTIONS)
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
        compared.append(f"{score(metric, task['random'])} from random weights ({report_results.gain(task)})")
    if task["majority_baseline"] is not None:
        compared.append(f"{score(metric, task['majority_baseline'])} majority")
    return _card(f"{task['task']}, {metric or UNKNOWN}", score(metric, task["pretrained"]), ", ".join(compared))


def _card(label: str, value: str, compared: str) -> str:
    details = f'<dd class="before">{text(compared)}</dd>' if compared else ""
    return f'<div><dt>{text(label)}</dt><dd class="value">{text(value)}</dd>{details}</div>'


def _models(facts: Facts) -> str:
    models = facts["models"]
    if not models:
        return section("models", "Models", paragraph("No model has been registered.", css="note"))
    rows = [
        (code(model["uri"]), text(model["version"]), "registered now" if model["new"] else "registered before")
        for model in models
    ]
    return section(
        "models",
        "Models",
        table("Registered models", ("URI", "version", ""), rows, numbers=(1,)),
        "<h3>Load one</h3>",
        block(_loading(facts["tracking_uri"], models[0]["uri"])),
        paragraph(f"The same weights, with tokeniser, are plain Hugging Face files in {code(facts['workspace'])}:"),
        block(_loading_files(facts["workspace"])),
        _commands(facts["commands"]),
    )


def _loading(tracking_uri: str, uri: str) -> str:
    return (
        "import mlflow\n\n"
        f"mlflow.set_tracking_uri({tracking_uri!r})\n"
        f"model = mlflow.transformers.load_model({uri!r})\n"
        f'model("It returns the {MASK} of the list.")'
    )


def _loading_files(workspace: str) -> str:
    directory = f"{workspace.rstrip('/')}/pretraining/encoder"
    return (
        "from transformers import pipeline\n\n"
        f'model = pipeline("fill-mask", model={directory!r})\n'
        f'model("It returns the {MASK} of the list.")'
    )


def _commands(commands: Facts) -> str:
    if not commands:
        return ""
    return "<h3>Open the run in MLflow and Prefect</h3>" + block("\n".join(commands.values()))


def _reproduce(facts: Facts) -> str:
    origin = facts["origin"]
    seeds = [(code(name), text(value)) for name, value in origin["seeds"].items()]
    digests = [(text(stage), code(digest)) for stage, digest in origin["digests"].items()]
    versions = [(text(name), text(version)) for name, version in facts["versions"].items()]
    return section(
        "reproduce",
        "Reproduce",
        block(origin["command"]),
        paragraph(
            "The same command in the same workspace builds only what is missing. With the same input files, documents, "
            "vocabulary and examples have these digests on any machine; models have them where libraries, "
            "processor and number of ranks are the same too."
        ),
        table("Digests of what was built", ("built", "digest of its files"), digests) if digests else "",
        "<h3>Seeds</h3>" + table("Seeds", ("setting", "value"), seeds, numbers=(1,)) if seeds else "",
        "<h3>Versions</h3>",
        paragraph(
            "Of the environment that wrote this page; a stage that was complete already may be older.", css="small"
        ),
        table("Versions", ("", "version"), versions),
        _recipe(facts, origin),
    )


def _recipe(facts: Facts, origin: Facts) -> str:
    found = origin["recipe_text"]
    if "problem" in found:
        return problem(found)
    summary = f"<summary>The recipe, {foreign(facts['recipe'])}</summary>"
    return f"<details>{summary}{block(found['text'])}</details>"
