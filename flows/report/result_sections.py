"""Sections of the report on the results: pre-training, tasks, and the time of each stage."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flows.report.charts import Band, Bar, Group, Line, horizontal_bars, line_chart
from flows.report.html import (
    UNKNOWN,
    count,
    figure,
    foreign,
    joined,
    key,
    metric_value,
    paragraph,
    problem,
    score,
    table,
    text,
)
from flows.report.manifest_facts import TaskFacts
from flows.running.outcomes import shown_seconds
from pipelines.statistics.metrics import HELDOUT_PREFIX, LOSS, Metric
from pipelines.statistics.training import PretrainingStatistics
from training.settings.pretraining import MEASURES
from training.stages.budgets import amount_in_words

Facts = dict[str, Any]

_COLOURS = ("s1", "s2", "s3", "s4")


def standard_error(metric: str | None, share: float | None, rows: int | None) -> float | None:
    """Standard error of an accuracy, sqrt(p (1 - p) / n); None for another metric, or if a value is unknown."""
    if metric != "accuracy" or share is None or not rows:
        return None
    return math.sqrt(share * (1 - share) / rows)


def training(facts: Facts) -> str:
    """Curves of pre-training, held-out scores before and after, phases, deviations from BERT."""
    series = facts["curves"]
    if not facts["pretraining"] and not series:
        return ""
    found = PretrainingStatistics.model_validate(facts["pretraining"])
    bands = _bands(facts["phases"])
    parts = [metric for metric in found.metrics if metric != LOSS]
    losses, accuracies = (
        curve_lines({} if "problem" in series else series, [metric for metric in parts if metric.unit == unit])
        for unit in ("nats", "share")
    )
    losses += reference_lines(series, facts.get("reference", {}), parts)
    charts = [
        figure(line_chart("Loss over steps", "step", losses, bands), "Loss", _keys(losses, bands)),
        figure(
            line_chart("Accuracy over steps", "step", accuracies, bands, percent=True),
            "Accuracy",
            _keys(accuracies, bands),
        ),
    ]
    return joined(
        _model_line(facts, found),
        *(paragraph("Started from", foreign(record.in_words())) for record in found.lineage),
        f'<div class="figures">{"".join(charts)}</div>' if any(charts) else "",
        problem(series),
        problem(facts.get("reference")),
        _phase_table(facts["phases"]),
        _heldout_table(found),
        _pairs_table(found),
        _deviations(found),
    )


def _bands(phases: Sequence[Facts]) -> list[Band]:
    bands, begin = [], 0
    for phase in phases:
        if phase.get("about_steps") is None:
            return []
        end = begin + phase["about_steps"]
        bands.append(Band(f"length {phase['max_seq_length']}", begin, end))
        begin = end
    return bands if len(bands) > 1 else []


def curve_lines(series: Mapping[str, Any], metrics: Sequence[Metric]) -> list[Line]:
    """The metrics that a series has points of, a colour each, held-out ones dotted."""
    drawn = []
    for metric, colour in zip(metrics, _COLOURS, strict=False):
        for prefix, words in (("", ""), (HELDOUT_PREFIX, ", held out")):
            if points := series.get(prefix + metric.name):
                drawn.append(Line(metric.label + words, [(x, y) for x, y in points], colour, dotted=bool(prefix)))
    return drawn


def reference_lines(series: Mapping[str, Any], reference: Mapping[str, Any], metrics: Sequence[Metric]) -> list[Line]:
    """The losses of another run, by the steps at which this one has had as many tokens."""
    tokens = [] if "problem" in series else series.get("tokens", [])
    if not tokens or "curves" not in reference:
        return []
    steps, counts = zip(*tokens, strict=True)
    drawn = []
    for metric in metrics:
        points = [
            (float(np.interp(x, counts, steps)), y)
            for x, y in reference["curves"].get(metric.name, ())
            if counts[0] <= x <= counts[-1]
        ]
        if metric.unit == "nats" and points:
            drawn.append(Line(f"{metric.label} of {reference['name']}", points, "quiet"))
    return drawn


def _keys(lines: Sequence[Line], bands: Sequence[Band]) -> str:
    shaded = ", ".join(band.label for band in bands[1::2])
    keys = [key(line.colour, line.label, line.dotted) for line in lines]
    return "".join(keys) + (f'<span class="key">shaded: {text(shaded)}</span>' if shaded else "")


def _model_line(facts: Facts, found: PretrainingStatistics) -> str:
    model = facts["model"]
    parts = [
        f"{model['num_hidden_layers']} layers, hidden size {model['hidden_size']}, "
        f"{model['num_attention_heads']} attention heads"
    ]
    if found.parameters is not None:
        parts.append(f"{count(found.parameters)} parameters")
    if found.world_size is not None:
        parts.append("1 rank" if found.world_size == 1 else f"{found.world_size} ranks")
    speed = [] if "problem" in facts["curves"] else facts["curves"].get("tokens_per_second", [])
    if speed:
        parts.append(f"{speed[-1][1]:,.0f} tokens a second at the end")
    return paragraph(text("; ".join(parts) + "."))


def _phase_table(phases: Sequence[Facts]) -> str:
    rows = []
    for number, phase in enumerate(phases, start=1):
        batch = f"{count(phase['global_batch_size'])} examples"
        if phase.get("global_batch_tokens") is not None:
            batch = f"{count(phase['global_batch_tokens'])} tokens"
        rows.append((f"phase {number}", text(phase["max_seq_length"]), _length_of(phase), batch))
    is_by_steps = all(phase.get("steps") is not None for phase in phases)
    header = ("", "maximum length", "steps" if is_by_steps else "trained for", "a step")
    return table("Phases of pre-training", header, rows, numbers=(1, 2, 3)) if rows else ""


def _length_of(phase: Facts) -> str:
    measure = next(name for name in MEASURES if phase.get(name) is not None)
    return count(phase[measure]) if measure == "steps" else text(amount_in_words(phase[measure], measure))


def _pairs_table(found: PretrainingStatistics) -> str:
    pairs = found.minimal_pairs
    if pairs is None:
        return ""
    rows = [
        (foreign(name), f"{part.accuracy:.3f}", f"{part.standard_error:.3f}", count(part.pairs), count(part.ties))
        for name, part in (*pairs.parts.items(), ("all", pairs.overall))
    ]
    header = ("", "accuracy", "standard error", "pairs", "ties")
    source = "pairs made from the held-out documents" if pairs.data == "heldout" else pairs.data
    return (
        "<h3>Minimal pairs</h3>"
        + paragraph(
            text(
                "How often the grammatical sentence of a pair has the higher score after training, by "
                f"{pairs.method}; 0.5 is chance. Source:"
            ),
            foreign(source),
        )
        + table("Accuracy on minimal pairs", header, rows, numbers=(1, 2, 3, 4))
    )


def _heldout_table(found: PretrainingStatistics) -> str:
    scores = (found.heldout_before, found.heldout)
    if not any(scores):
        return ""
    rows = [
        (text(metric.label), *(metric_value(metric, each.get(metric.name)) for each in scores))
        for metric in found.heldout_metrics
    ]
    return "<h3>On held-out text</h3>" + table("Held-out scores", ("", "before", "after"), rows, numbers=(1, 2))


def _deviations(found: PretrainingStatistics) -> str:
    if found.deviations is None:
        return ""
    # Each ends with BERT's value in brackets.
    items = "".join(f"<li>{text(item)}</li>" for item in re.split(r"(?<=\)), ", found.deviations))
    return f"<h3>Deviations from BERT</h3><ul>{items}</ul>"


def tasks(facts: Facts) -> str:
    """Scores of each task from the pre-trained encoder, from random weights, and of the majority class."""
    found = [TaskFacts.model_validate(task) for task in facts["tasks"]]
    if not found:
        return paragraph("The recipe names no task.", css="note")
    groups, rows = [], []
    for task in found:
        bars = _bars(task)
        low = min([0.0, *(bar.value for bar in bars if bar.value is not None)])
        heading = f"{task.task}, {task.metric}" if task.metric else task.task
        groups.append(Group(heading, bars, low, 1.0))
        rows.append(_task_row(task))
    header = ("task", "metric", "pre-trained", "random", "majority", "difference", "train rows", "dev rows")
    notes = [
        paragraph(
            "Pre-trained and random have the same architecture, data, seed and settings; only the initial weights "
            "differ. One seed each. ± is one standard error for the size of the dev set, if the metric is accuracy.",
            css="small",
        )
    ]
    if any(not task.in_recipe for task in found):
        notes.append(paragraph("* is in the workspace, but not in this recipe.", css="small"))
    problems = [paragraph(f"{text(task.task)}:", foreign(task.problem), css="note") for task in found if task.problem]
    chart = horizontal_bars("Scores by task and start", [group for group in groups if group.bars])
    table_html = table("Scores by task", header, rows, numbers=range(2, 8))
    return joined(figure(chart, "Scores on the dev set", ""), table_html, *notes, *problems)


def _share(value: Any) -> float | None:
    return None if value is None else value if abs(value) <= 1 else value / 100


def _bars(task: TaskFacts) -> list[Bar]:
    scores = (
        (task.pretrained, "pre-trained", "s1"),
        (task.random, "random", "s2"),
        (task.majority_baseline, "majority", "quiet"),
    )
    return [
        Bar(label, _share(value), score(task.metric, value), colour)
        for value, label, colour in scores
        if value is not None
    ]


def _task_row(task: TaskFacts) -> tuple[str, ...]:
    metric = task.metric
    name = text(task.task) + ("" if task.in_recipe else "&nbsp;*")
    return (
        name,
        text(metric or UNKNOWN),
        score(metric, task.pretrained),
        score(metric, task.random),
        score(metric, task.majority_baseline),
        gain(task),
        count(task.train_rows),
        count(task.dev_rows),
    )


def gain(task: TaskFacts) -> str:
    """Pre-trained minus random, with its standard error if known: `+6.0 ± 2.2`."""
    metric, pretrained, random = task.metric, _share(task.pretrained), _share(task.random)
    if pretrained is None or random is None:
        return UNKNOWN
    in_percent = score(metric, 0.0) != "0.000"
    difference = f"{(pretrained - random) * 100:+.1f}" if in_percent else f"{pretrained - random:+.3f}"
    errors = [standard_error(metric, share, task.dev_rows) for share in (pretrained, random)]
    if errors[0] is None or errors[1] is None:
        return difference
    return f"{difference} ± {math.hypot(errors[0], errors[1]) * 100:.1f}".replace(" ", "\N{NO-BREAK SPACE}")


def timings(facts: Facts) -> str:
    """How long each stage took when it was last built."""
    stages = facts["stages"]
    if not stages:
        return ""
    known = [stage["seconds"] for stage in stages if stage["seconds"] is not None]
    bars = [
        Bar(stage["stage"], stage["seconds"], _took(stage), "s1" if stage["built"] else "quiet") for stage in stages
    ]
    chart = horizontal_bars("Time of each stage", [Group("", bars, 0.0, max([*known, 1.0]))])
    total = f"Total: {shown_seconds(sum(known))}." if known else ""
    skipped = any(not stage["built"] for stage in stages)
    keys = key("s1", "built in this run") + key("quiet", "already complete: time of its build") if skipped else ""
    return joined(paragraph(text(total)) if total else "", figure(chart, "Stages", keys))


def _took(stage: Facts) -> str:
    if stage["seconds"] is None:
        return "already complete, time unknown"
    return shown_seconds(stage["seconds"])
