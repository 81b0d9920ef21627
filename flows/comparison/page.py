"""The page of a study: its table, curves over each other, costs, and how the recipes differ."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from flows.comparison.results import Cell, Comparison, RunResult
from flows.comparison.study_file import Study
from flows.comparison.summary import heldout_lines
from flows.report.charts import line_chart
from flows.report.html import UNKNOWN, block, count, figure, foreign, joined, key, metric_value, paragraph, table, text
from flows.report.page import framed
from flows.running.outcomes import shown_seconds
from pipelines.statistics.metrics import Metric


def study_page(study: Study, comparison: Comparison) -> str:
    """One self-contained HTML page; equal results give equal bytes."""
    complete = sum(result.problem is None for result in comparison.results)
    seeds = len(study.config.seeds)
    sentence = (
        f"{len(comparison.variants)} variants of {study.config.base} with {seeds} {'seed' if seeds == 1 else 'seeds'}; "
        f"{complete} of {len(comparison.results)} runs are complete."
    )
    warnings = [
        {"stage": result.run.label, "text": result.problem}
        for result in comparison.results
        if result.problem is not None
    ]
    sections = [
        (
            "comparison",
            "Comparison",
            joined(_question(study), *(_table(each, comparison) for each in comparison.measures)),
        ),
        ("curves", "Curves", _charts(comparison)),
        ("cost", "Cost", _costs(comparison)),
        ("recipes", "Recipes", _recipes(study)),
    ]
    return framed(f"Study {study.config.name}", sentence, warnings, [], sections)


def _question(study: Study) -> str:
    return paragraph(foreign(study.config.question)) if study.config.question else ""


def _table(metric: Metric, comparison: Comparison) -> str:
    cells = comparison.cells[metric.name]
    has_published = any(cell.published is not None for cell in cells.values())
    header = [
        "",
        "mean",
        "standard deviation",
        "seeds",
        f"difference to {comparison.variants[0]}",
        "its standard error",
    ]
    rows = [[foreign(name), *_shown(metric, cells.get(name))] for name in comparison.variants]
    if has_published:
        header.append("published")
        for row, name in zip(rows, comparison.variants, strict=True):
            row.append(metric_value(metric, cells[name].published if name in cells else None))
    better = "more is better" if metric.more_is_better else "less is better"
    caption = f"<h3>{foreign(metric.label)}, {better}</h3>"
    return caption + table(metric.label, header, rows, numbers=range(1, len(header)))


def _shown(metric: Metric, cell: Cell | None) -> list[str]:
    if cell is None:
        return [UNKNOWN] * 5
    difference = UNKNOWN if cell.difference is None else f"{cell.difference:+.4f}"
    error = UNKNOWN if cell.difference_error is None else f"{cell.difference_error:.4f}"
    deviation = UNKNOWN if cell.deviation is None else f"{cell.deviation:.4f}"
    return [metric_value(metric, cell.mean), deviation, str(cell.num_seeds), difference, error]


def _charts(comparison: Comparison) -> str:
    charts = []
    for metric in comparison.measures:
        lines = heldout_lines(comparison, metric)
        if any(len(line.points) > 1 for line in lines):
            chart = line_chart(metric.label, "step", lines, percent=metric.unit == "share")
            keys = "".join(key(line.colour, line.label, line.dotted) for line in lines)
            charts.append(figure(chart, f"{metric.label}, held out", keys))
    return f'<div class="figures">{"".join(charts)}</div>' if charts else ""


def _costs(comparison: Comparison) -> str:
    rows = []
    for name in comparison.variants:
        own = [result for result in comparison.results if result.run.variant == name and result.problem is None]
        if own:
            rows.append((foreign(name), count(round(mean(result.tokens for result in own))), *_work(own)))
    header = ("", "tokens pre-trained", "operations", "time")
    note = paragraph(
        text(
            "Means over the seeds, on this machine, of pre-training or, where nothing is pre-trained, of fine-tuning. "
            "Operations are counted from the tokens."
        )
    )
    return joined(table("Cost of a run", header, rows, numbers=(1, 2, 3)), note) if rows else ""


def _work(own: Sequence[RunResult]) -> tuple[str, str]:
    seconds = [result.seconds for result in own if result.seconds is not None]
    flops = mean(result.flops for result in own)
    return f"{flops:.2e}", shown_seconds(mean(seconds)) if seconds else UNKNOWN


def _recipes(study: Study) -> str:
    shared = [*study.config.overrides, *study.more]
    parts = [paragraph("Base:", foreign(study.config.base))]
    if shared:
        parts.append(paragraph("For all variants:") + block("\n".join(shared)))
    rows = [
        (foreign(variant.name), foreign("; ".join(variant.overrides) or "the base recipe"))
        for variant in study.variants
    ]
    return joined(*parts, table("Variants", ("variant", "changes"), rows))
