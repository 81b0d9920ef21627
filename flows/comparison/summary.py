"""What a repository or a mail takes from a study: its table as Markdown, and its curves as one drawing."""

from __future__ import annotations

from flows.comparison.results import Cell, Comparison, RunResult
from flows.comparison.study_file import Study
from flows.report.charts import Line, line_chart, standalone
from pipelines.statistics.metrics import Metric

_COLOURS = ("s1", "s2", "s3", "s4")


def study_table(study: Study, comparison: Comparison) -> str:
    """A Markdown table: a line for each variant, a column for each measure; equal results give equal bytes."""
    published = [metric for metric in comparison.measures if _published(comparison, metric)]
    header = ["", *(_heading(metric) for metric in comparison.measures)]
    header += [f"published, {metric.label}" for metric in published]
    rows = []
    for name in comparison.variants:
        cells = [comparison.cells[metric.name].get(name) for metric in comparison.measures]
        papers = [comparison.cells[metric.name].get(name) for metric in published]
        own = [f"{cell.published:g}" if cell is not None and cell.published is not None else "" for cell in papers]
        rows.append([name, *map(_shown, cells), *own])
    lines = ["| " + " | ".join(each) + " |" for each in (header, ["---"] * len(header), *rows)]
    seeds = "one seed" if len(study.config.seeds) == 1 else f"{len(study.config.seeds)} seeds"
    complete = [result for result in comparison.results if result.problem is None]
    note = (
        f"Means over {seeds} +- standard deviation; in brackets the paired difference to {comparison.variants[0]} +- "
        f"its standard error. {len(complete)} of {len(comparison.results)} runs are complete."
    )
    return "\n".join([f"# {study.config.name}", "", study.config.question, "", *lines, "", note, ""])


def study_drawing(comparison: Comparison) -> str:
    """The held-out curves of the first measure that has some, as an SVG file; empty without any."""
    for metric in comparison.measures:
        lines = heldout_lines(comparison, metric)
        if any(len(line.points) > 1 for line in lines):
            chart = line_chart(f"{metric.label}, held out", "step", lines, percent=metric.unit == "share")
            return standalone(chart, lines)
    return ""


def heldout_lines(comparison: Comparison, metric: Metric) -> list[Line]:
    """A measure's curve of the first complete seed of each variant."""
    first: dict[str, RunResult] = {}
    for result in comparison.results:
        if result.problem is None:
            first.setdefault(result.run.variant, result)
    return [
        # After the colours come the same ones dashed.
        Line(name, result.curves[metric.name], _COLOURS[index % 4], dotted=index // 4 % 2 == 1)
        for index, (name, result) in enumerate(first.items())
        if metric.name in result.curves
    ]


def _published(comparison: Comparison, metric: Metric) -> bool:
    return any(cell.published is not None for cell in comparison.cells[metric.name].values())


def _heading(metric: Metric) -> str:
    return f"{metric.label} ({'more' if metric.more_is_better else 'less'} is better)"


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    parts = [f"{cell.mean:.4f}"]
    if cell.deviation is not None:
        parts.append(f"+- {cell.deviation:.4f}")
    if cell.difference is not None:
        error = "" if cell.difference_error is None else f" +- {cell.difference_error:.4f}"
        parts.append(f"({cell.difference:+.4f}{error})")
    return " ".join(parts)
