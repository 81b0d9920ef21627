"""Charts of the report: round ticks, everything inside the drawing, lengths in proportion to values."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.report import charts as report_charts


@given(st.floats(-1e9, 1e9), st.floats(1e-5, 1e3), st.integers(2, 8))
def test_ticks_are_round_and_cover_the_data(low: float, width: float, count: int) -> None:
    high = low + width * max(abs(low), 1)
    found = report_charts.ticks(low, high, count)
    step = found[1] - found[0]
    slack = step * 1e-4
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= count + 2
    assert float(f"{step:.0e}") == pytest.approx(step, rel=1e-3)


POINTS = st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e3, 1e6)), min_size=1, max_size=30)


@settings(deadline=None)
@given(st.lists(POINTS, min_size=1, max_size=3), st.booleans())
def test_curves_lie_inside_their_chart(curves: list[list[tuple[int, float]]], percent: bool) -> None:
    lines = [report_charts.Line(f"<{number}>", points, "s1", dotted=True) for number, points in enumerate(curves)]
    bands = [report_charts.Band("first", 0, 10), report_charts.Band("second", 10, 20)]
    chart = report_charts.line_chart("a & b", "step", lines, bands, percent)
    assert chart == report_charts.line_chart("a & b", "step", lines, bands, percent)
    root = ElementTree.fromstring(chart)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    dots = list(root.iter("circle"))
    assert len(dots) == sum(map(len, curves))
    for dot in dots:
        assert 0 <= float(dot.attrib["cx"]) <= width
        assert 0 <= float(dot.attrib["cy"]) <= height


def test_the_legend_of_a_drawing_has_rows_within_its_width() -> None:
    labels = ["masked tokens=500000", "masked tokens=1500000", "masked tokens=4500000", "left-to-right tokens=500000"]
    lines = [report_charts.Line(label, [(0, 1.0), (9, 2.0)], "s1") for label in labels]
    root = ElementTree.fromstring(report_charts.standalone(report_charts.line_chart("a", "step", lines), lines))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert width == report_charts.WIDTH
    places = {text.text: text.attrib for text in root.iter() if text.text in labels}
    assert list(places) == labels
    assert len({place["y"] for place in places.values()}) == 3
    for label, place in places.items():
        assert float(place["x"]) + report_charts.LETTER_WIDTH * len(label) <= width
        assert float(place["y"]) < height


def test_the_bars_of_a_histogram_are_as_high_as_their_counts() -> None:
    root = ElementTree.fromstring(report_charts.histogram("lengths", "tokens", [("8", 10), ("16", 0), ("24", 40)]))
    heights = [float(bar.attrib["height"]) for bar in root.iter("rect")]
    assert heights == [37.5, 0, 150]
    assert [bar.findtext("title") for bar in root.iter("rect")] == ["8: 10", "16: 0", "24: 40"]


def test_a_negative_score_goes_to_the_left_of_zero() -> None:
    bars = [report_charts.Bar("low", -0.5, "-0.5", "s1"), report_charts.Bar("high", 1.0, "1.0", "s2")]
    root = ElementTree.fromstring(report_charts.horizontal_bars("scores", [report_charts.Group("", bars, -0.5, 1.0)]))
    low, high = ({key: float(bar.attrib[key]) for key in ("x", "width")} for bar in root.iter("rect"))
    assert low["x"] + low["width"] == pytest.approx(high["x"], abs=0.2)
    assert high["width"] == pytest.approx(2 * low["width"], abs=0.2)


def test_a_chart_without_values_is_no_chart() -> None:
    assert report_charts.line_chart("none", "step", [report_charts.Line("none", [], "s1")]) == ""
    assert report_charts.histogram("none", "tokens", []) == ""
    assert report_charts.horizontal_bars("none", []) == ""
