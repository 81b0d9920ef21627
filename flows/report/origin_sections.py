"""Sections of the report on next steps: load the models, reproduce the run."""

from __future__ import annotations

from typing import Any

from flows.report.html import block, code, foreign, joined, paragraph, problem, table, text
from pipelines.contract.schemas import MASK

Facts = dict[str, Any]


def models(facts: Facts) -> str:
    """The registered models, and how to load one."""
    found = facts["models"]
    if not found:
        return paragraph("No model has been registered.", css="note")
    rows = [
        (code(model["uri"]), text(model["version"]), "registered now" if model["new"] else "registered before")
        for model in found
    ]
    return joined(
        table("Registered models", ("URI", "version", ""), rows, numbers=(1,)),
        "<h3>Load one</h3>",
        block(_loading(facts["tracking_uri"], found[0]["uri"])),
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


def reproduce(facts: Facts) -> str:
    """How to reproduce the run: command, digests, seeds, versions, recipe."""
    origin = facts["origin"]
    seeds = [(code(name), text(value)) for name, value in origin["seeds"].items()]
    digests = [(text(stage), code(digest)) for stage, digest in origin["digests"].items()]
    versions = [(text(name), text(version)) for name, version in facts["versions"].items()]
    return joined(
        block(origin["command"]),
        paragraph(
            "The same command in the same workspace builds only what is missing. With the same input files, documents, "
            "vocabulary and examples have these digests on any machine; models have them if libraries, "
            "processor and number of ranks are the same too."
        ),
        table("Digests of the outputs", ("output", "digest of its files"), digests) if digests else "",
        "<h3>Seeds</h3>" + table("Seeds", ("setting", "value"), seeds, numbers=(1,)) if seeds else "",
        "<h3>Versions</h3>",
        paragraph(
            "Of the environment that wrote this page; a stage that was already complete may be older.", css="small"
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
