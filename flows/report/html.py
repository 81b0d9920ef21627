"""HTML of the report, in small functions: text is escaped here, also for the template; numbers are formatted."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from pipelines.statistics.metrics import Metric

UNKNOWN = "-"
_STACKED_COLUMNS = 3
_IN_BLOCKS = "\n\t"
_CONTROL = ("Cc", "Cs")
_SPACE = "\N{NO-BREAK SPACE}"
_PERCENT_METRICS = ("accuracy", "f1", "micro_f1", "macro_f1", "exact_match", "span_f1")


def text(value: object) -> str:
    """Our own text as HTML."""
    return _escaped(value)


def foreign(value: object) -> str:
    """Text from a corpus as HTML: isolated, so that its direction marks do not affect the text that follows."""
    return f"<bdi>{_escaped(value)}</bdi>"


def code(value: object) -> str:
    return f"<code>{_escaped(value)}</code>"


def _escaped(value: object, kept: str = "") -> str:
    """Escaped for HTML; control characters, which HTML forbids or hides, as Python escapes, except those in `kept`."""
    visible = "".join(
        each.encode("unicode_escape").decode() if unicodedata.category(each) in _CONTROL and each not in kept else each
        for each in str(value)
    )
    return html.escape(visible)


def paragraph(*parts: str, css: str = "") -> str:
    attribute = f' class="{css}"' if css else ""
    return f"<p{attribute}>{' '.join(part for part in parts if part)}</p>"


def block(value: str) -> str:
    """Commands or program text, which scroll inside their own box."""
    return f'<pre tabindex="0">{_escaped(value, _IN_BLOCKS)}</pre>'


def table(label: str, header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of HTML cells; `numbers` are right-aligned columns.

    On a narrow screen a table of three or more columns is stacked: one cell below the other, with its column's name.
    """
    right = set(numbers)
    is_wide = len(header) >= _STACKED_COLUMNS

    def cell(tag: str, column: int, content: str) -> str:
        scope = ' scope="row"' if tag == "th" else ""
        if is_wide and tag == "td" and header[column] and content:
            scope = f' data-label="{html.escape(header[column])}"'
        return f"<{tag}{scope}{' class=number' if column in right else ''}>{content}</{tag}>"

    head = "".join(
        f'<th scope="col"{" class=number" if column in right else ""}>{name}</th>' for column, name in enumerate(header)
    )
    body = "".join(
        f"<tr>{''.join(cell('td' if column else 'th', column, content) for column, content in enumerate(row))}</tr>\n"
        for row in rows
    )
    css = "scroll stacked" if is_wide else "scroll"
    opening = f'<div class="{css}" role="region" tabindex="0" aria-label="{html.escape(label)}">'
    return f"{opening}<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"


def figure(chart: str, heading: str, caption: str) -> str:
    """A chart with its heading above and its legend below; empty without a chart."""
    if not chart:
        return ""
    return f"<figure><h3>{heading}</h3>{chart}<figcaption>{caption}</figcaption></figure>"


def key(colour: str, label: str, dotted: bool = False) -> str:
    """One entry of a chart's legend."""
    return f'<span class="key"><i class="{colour}{" dotted" if dotted else ""}"></i>{text(label)}</span>'


def joined(*parts: str) -> str:
    """Parts of a section, one below the other, without empty ones."""
    return "\n".join(part for part in parts if part)


def problem(facts: Any) -> str:
    """Why a part of the workspace could not be shown; empty if it could."""
    if not isinstance(facts, dict) or "problem" not in facts:
        return ""
    return paragraph("This part could not be read:", foreign(facts["problem"]), css="note")


def count(value: Any) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def large(value: Any) -> str:
    """A count with three digits: `950`, `12.3 thousand`, `2.34 million`."""
    if value is None:
        return UNKNOWN
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e4)):
        if value >= size:
            scaled = value / (1e3 if unit == "thousand" else size)
            return f"{scaled:.3g}{_SPACE}{unit}" if scaled < 1000 else f"{scaled:,.0f}{_SPACE}{unit}"
    return f"{value:,}"


def percent(value: Any) -> str:
    return UNKNOWN if value is None else f"{value * 100:.1f}{_SPACE}%"


def metric_value(metric: Metric, value: float | None) -> str:
    """A value of a metric in its unit."""
    if value is None or metric.unit == "share":
        return percent(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"


def score(metric: str | None, value: Any) -> str:
    """A task's score: shares in percent, correlations unchanged."""
    if value is None:
        return UNKNOWN
    if metric in _PERCENT_METRICS:
        return percent(value if abs(value) <= 1 else value / 100)
    return f"{value:.3f}"
