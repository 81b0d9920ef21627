"""Charts of the report as SVG text: pure functions of numbers, without scripts, fonts or colours of their own.

A chart is 360 units wide, about a phone's column, and is never enlarged much, so its text keeps its size. Colours
are CSS classes (`s1` to `s4` and `quiet`), text uses the page's. Coordinates are rounded: equal numbers, equal bytes.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 360
LETTER_WIDTH = 6.4
"""Average width of a character of chart text, 11 units high; a generous estimate, as fonts differ."""

_PLOT_HEIGHT = 150
_TOP, _RIGHT, _BOTTOM = 20, 14, 36
_HEADING_CHARACTERS, _LABEL_CHARACTERS = 46, 18
_ROW_HEIGHT, _GROUP_HEIGHT, _BAR_HEIGHT = 20, 24, 11
_LEGEND_HEIGHT = 16


_COLOURS = {"s1": "#1f5fbf", "s2": "#a84a08", "s3": "#17733f", "s4": "#7a3fa8", "quiet": "#8b9098"}
# Without variables, which not every reader of SVG knows.
_STANDALONE_STYLE = (
    "svg{background:#fff;font:11px sans-serif}text{fill:#585c63}"
    ".grid{stroke:#dcdcd6}.stroke{fill:none;stroke-width:1.8}"
    + "".join(f".{name}.stroke{{stroke:{colour}}}.{name}.fill{{fill:{colour}}}" for name, colour in _COLOURS.items())
)


@dataclass(frozen=True)
class Line:
    """One curve; `dotted` marks each point and draws dashes between them, for values that are far apart."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    dotted: bool = False


@dataclass(frozen=True)
class Band:
    """A named interval of the horizontal axis, such as one phase of training."""

    label: str
    begin: float
    end: float


@dataclass(frozen=True)
class Bar:
    """One horizontal bar; a `value` of None is shown by `text` alone."""

    label: str
    value: float | None
    text: str
    colour: str


@dataclass(frozen=True)
class Group:
    """Bars under one heading, on one scale from `low` to `high`; an empty heading takes no space."""

    heading: str
    bars: Sequence[Bar]
    low: float
    high: float


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` or below to `high` or above.

    The span must be at least a millionth of the values, else their difference is lost in rounding.
    """
    assert low < high, (low, high)
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def line_chart(
    title: str, x_label: str, lines: Sequence[Line], bands: Sequence[Band] = (), percent: bool = False
) -> str:
    """Curves over steps, every second band shaded; bands are labelled if there is room.

    The vertical axis of shares (`percent`) starts at zero, that of other values at their minimum.
    """
    xs = [x for line in lines for x, _ in line.points] + [edge for band in bands for edge in (band.begin, band.end)]
    ys = [y for line in lines for _, y in line.points]
    if not ys:
        return ""
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    # A flat curve gets some height, and shares start at zero.
    low = min(0.0, *ys) if percent else min(ys)
    y_ticks = ticks(low, max(*ys, low + max(abs(low) * 1e-3, 1e-6)))
    left = 12 + LETTER_WIDTH * max(len(_number(tick, percent)) for tick in y_ticks)
    plot = _Plot(left, x_low, x_high, y_ticks[0], y_ticks[-1])
    parts = [_band(plot, band, shaded=index % 2 == 1) for index, band in enumerate(bands)]
    parts += [_y_tick(plot, tick, _number(tick, percent)) for tick in y_ticks]
    inner = [tick for tick in ticks(x_low, x_high, 4) if x_low <= tick <= x_high]
    parts += [_x_tick(plot.x(tick), plot.bottom, _short(tick)) for tick in inner]
    parts.append(_text(plot.middle, plot.bottom + 30, x_label, "middle"))
    parts += [_curve(plot, line) for line in lines if line.points]
    return _svg(title, plot.bottom + _BOTTOM, parts)


def standalone(chart: str, lines: Sequence[Line]) -> str:
    """A chart of `lines` as a file of its own, with colours on white and a legend below."""
    height = float(chart.partition('viewBox="0 0 ')[2].split('"')[0].split()[1])
    legend, x = [], 0.0
    widths = [34 + LETTER_WIDTH * len(line.label) for line in lines]
    for line, width in zip(lines, widths, strict=True):
        if x and x + width > WIDTH:
            x, height = 0.0, height + _LEGEND_HEIGHT
        dashes = ' stroke-dasharray="2 3"' if line.dotted else ""
        stroke = f'<line class="{line.colour} stroke" x1="{_r(x)}" x2="{_r(x + 16)}" y1="{_r(height + 6)}" '
        legend.append(f'{stroke}y2="{_r(height + 6)}"{dashes}/>{_text(x + 20, height + 10, line.label)}')
        x += width
    widest = max(WIDTH, *map(round, widths))
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {widest} {_r(height + 18)}">'
    body = chart.partition(">")[2].removesuffix("</svg>")
    return f"{opening}<style>{_STANDALONE_STYLE}</style>{body}{''.join(legend)}</svg>\n"


def histogram(title: str, x_label: str, bars: Sequence[tuple[str, float]]) -> str:
    """Vertical bars of equal width; each shows its label and value in a tooltip."""
    if not bars:
        return ""
    y_ticks = ticks(0.0, max(*(value for _, value in bars), 1.0))
    left = 12 + LETTER_WIDTH * max(len(_short(tick)) for tick in y_ticks)
    plot = _Plot(left, 0, len(bars), 0.0, y_ticks[-1])
    parts = [_y_tick(plot, tick, _short(tick)) for tick in y_ticks]
    gap = min(3.0, (plot.x(1) - plot.x(0)) * 0.2)
    widest = LETTER_WIDTH * max(len(label) for label, _ in bars) + 8
    every = max(1, math.ceil(widest * len(bars) / (WIDTH - _RIGHT - left)))
    for index, (label, value) in enumerate(bars):
        x, y = plot.x(index) + gap / 2, plot.y(value)
        size = f'width="{_r(plot.x(1) - plot.x(0) - gap)}" height="{_r(plot.bottom - y)}"'
        tooltip = f"<title>{html.escape(f'{label}: {value:,.0f}')}</title>"
        parts.append(f'<rect class="s1 fill" x="{_r(x)}" y="{_r(y)}" {size}>{tooltip}</rect>')
        # Counted from the last one, which is the full length.
        if (len(bars) - 1 - index) % every == 0:
            parts.append(_x_tick(plot.x(index + 0.5), plot.bottom, label))
    parts.append(_text(plot.middle, plot.bottom + 30, x_label, "middle"))
    return _svg(title, plot.bottom + _BOTTOM, parts)


def horizontal_bars(title: str, groups: Sequence[Group]) -> str:
    """Bars from zero, with the label on the left and the text on the right, in groups with a scale each."""
    bars = [bar for group in groups for bar in group.bars]
    if not bars:
        return ""
    left = 8 + LETTER_WIDTH * max(len(_cut(bar.label, _LABEL_CHARACTERS)) for bar in bars)
    room = WIDTH - left - 8 - LETTER_WIDTH * max(len(bar.text) for bar in bars)
    parts, y = [], 4.0
    for group in groups:
        if group.heading:
            parts.append(_text(0, y + 15, _cut(group.heading, _HEADING_CHARACTERS), "start", "strong"))
            y += _GROUP_HEIGHT
        zero, scale = max(0.0, -group.low), max(room, 1.0) / max(group.high - min(group.low, 0.0), 1e-9)
        for bar in group.bars:
            parts += _horizontal_bar(bar, left, left + zero * scale, scale, y)
            y += _ROW_HEIGHT
        y += 4
    return _svg(title, y, parts)


def _horizontal_bar(bar: Bar, left: float, zero_x: float, scale: float, y: float) -> list[str]:
    parts = [_text(0, y + 13, _cut(bar.label, _LABEL_CHARACTERS))]
    value = bar.value or 0.0
    begin, end = sorted((zero_x, zero_x + value * scale))
    if bar.value is not None:
        place = f'x="{_r(begin)}" y="{_r(y + 4)}" width="{_r(max(end - begin, 1.0))}" height="{_BAR_HEIGHT}"'
        parts.append(f'<rect class="{bar.colour} fill" {place} rx="1.5"/>')
    return [*parts, _text(max(end, left) + 6, y + 13, bar.text)]


@dataclass(frozen=True)
class _Plot:
    """The plot area: maps data to coordinates."""

    left: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @property
    def bottom(self) -> float:
        return _TOP + _PLOT_HEIGHT

    @property
    def middle(self) -> float:
        return (self.left + WIDTH - _RIGHT) / 2

    def x(self, value: float) -> float:
        return self.left + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - _RIGHT - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * _PLOT_HEIGHT


def _curve(plot: _Plot, line: Line) -> str:
    places = [(_r(plot.x(x)), _r(plot.y(y))) for x, y in line.points]
    points = " ".join(f"{x},{y}" for x, y in places)
    dashes = ' stroke-dasharray="2 3"' if line.dotted else ""
    drawn = [f'<polyline class="{line.colour} stroke" points="{points}"{dashes}/>']
    if line.dotted or len(places) == 1:
        drawn += [f'<circle class="{line.colour} fill" cx="{x}" cy="{y}" r="2.6"/>' for x, y in places]
    return f"<g><title>{html.escape(line.label)}</title>{''.join(drawn)}</g>"


def _band(plot: _Plot, band: Band, shaded: bool) -> str:
    begin, end = plot.x(band.begin), plot.x(band.end)
    place = f'x="{_r(begin)}" y="{_TOP}" width="{_r(end - begin)}" height="{_PLOT_HEIGHT}"'
    drawn = f'<rect class="band" {place}><title>{html.escape(band.label)}</title></rect>' if shaded else ""
    if LETTER_WIDTH * len(band.label) + 4 <= end - begin:
        drawn += _text((begin + end) / 2, _TOP - 6, band.label, "middle")
    return drawn


def _y_tick(plot: _Plot, value: float, label: str) -> str:
    y = _r(plot.y(value))
    grid = f'<line class="grid" x1="{_r(plot.left)}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
    return grid + _text(plot.left - 6, plot.y(value) + 4, label, "end")


def _x_tick(x: float, bottom: float, label: str) -> str:
    half = LETTER_WIDTH * len(label) / 2
    return _text(min(x, WIDTH - half), bottom + 15, label, "middle")


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "") -> str:
    css = f' class="{style}"' if style else ""
    return f'<text{css} x="{_r(x)}" y="{_r(y)}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    name = html.escape(title)
    opening = f'<svg class="chart" viewBox="0 0 {WIDTH} {_r(height)}" role="img" aria-label="{name}">'
    return f"{opening}<title>{name}</title>{''.join(parts)}</svg>"


def _number(value: float, percent: bool) -> str:
    return f"{value * 100:g} %".replace(" ", "\N{NO-BREAK SPACE}") if percent else f"{value:g}"


def _short(value: float) -> str:
    """A count in short form: 950, 12k, 1.5M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _r(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
