"""The report's page in a headless Chromium: no requests, no errors, nothing clipped, readable in both schemes."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.support.flows.finished_workspace import write_workspace
from tests.support.flows.headless_chromium import PACKAGES, Page, browser_page, find_chromium

from flows.parameters.requests import RunRequest
from flows.report.facts import gather
from flows.report.files import write_report
from flows.report.page import SECTIONS
from flows.running.outcomes import FlowOutcome

PHONE, SMALL_PHONE, DESKTOP = 390, 320, 1100
SCHEMES = ("light", "dark")
LEAST_CONTRAST = 4.5
"""Of text, by the Web Content Accessibility Guidelines 2.2, section 1.4.3."""

# Every text on the page with its contrast against the nearest painted background, by the guidelines' formula.
CONTRASTS = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const numbers = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const luminance = colour => {
    const [r, g, b] = [...numbers(colour)].slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = element => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (numbers(colour)[3] > 0) return colour;
    }
    return "canvas";
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, words = walker.currentNode.data.trim();
    if (!words || element.tagName === "title") continue;
    const style = getComputedStyle(element), isChart = element.namespaceURI.endsWith("svg");
    const one = luminance(isChart ? style.fill : style.color), other = luminance(background(element));
    found.push([words.slice(0, 40), (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), isChart]);
  }
  return found;
})()"""

# Texts of charts that leave their chart or overlap.
MISPLACED = """(() => {
  const found = [];
  for (const chart of document.querySelectorAll("svg.chart")) {
    const frame = chart.getBoundingClientRect(), texts = [...chart.querySelectorAll("text")];
    const boxes = texts.map(text => text.getBoundingClientRect());
    boxes.forEach((a, i) => {
      if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1 || a.bottom > frame.bottom + 1)
        found.push("outside: " + texts[i].textContent);
      boxes.slice(i + 1).forEach((b, j) => {
        if (a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2)
          found.push("overlap: " + texts[i].textContent + " | " + texts[i + 1 + j].textContent);
      });
    });
  }
  return found;
})()"""

# Elements that extend beyond the window, except inside a scrolling box.
OVERHANGING = """[...document.querySelectorAll("body *")]
  .filter(each => !each.closest(".scroll, pre") && each.getBoundingClientRect().right > innerWidth + 1)
  .map(each => each.tagName + " " + each.textContent.slice(0, 40))"""

SIDEWAYS = """[...document.querySelectorAll("{}")].filter(each => each.scrollWidth > each.clientWidth + 1)
  .map(each => each.getAttribute("aria-label") || each.textContent.slice(0, 40))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip(f"no Chromium found; install {PACKAGES}, or name one in CLOZEWORKS_CHROMIUM")
    with browser_page(program) as page:
        yield page


@pytest.fixture
def report_path(write_recipe: Callable[..., str]) -> str:
    """A report with all possible parts, harmful texts included."""
    whole = RunRequest(recipe=write_recipe()).read()
    write_report(whole, gather(whole, write_workspace(whole), "sqlite:////ws/mlflow.db", "/ws/prefect"))
    return os.path.join(whole.run.workspace, "report.html")


@pytest.mark.slow
def test_the_page_asks_for_nothing_and_complains_of_nothing(browser: Page, report_path: str) -> None:
    url = f"file://{report_path}"
    browser.open(url, DESKTOP)
    assert browser.requests == [url]
    assert browser.complaints == []
    assert browser.evaluate("[...document.querySelectorAll('main > section')].map(each => each.id)") == [
        section.identifier for section in SECTIONS
    ]
    assert browser.evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
    assert browser.evaluate("document.scripts.length + document.images.length") == 0
    assert browser.evaluate("document.querySelectorAll('svg.chart').length") == 6


@pytest.mark.slow
def test_a_server_is_asked_for_the_page_alone(browser: Page, report_path: str) -> None:
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, _format: str, *arguments: object) -> None:
            asked.append(str(arguments[0]))

    handler = functools.partial(Handler, directory=os.path.dirname(report_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            browser.open(f"http://127.0.0.1:{server.server_port}/report.html", DESKTOP)
        finally:
            server.shutdown()
            thread.join()
    assert asked == ["GET /report.html HTTP/1.1"]
    assert browser.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [SMALL_PHONE, PHONE, DESKTOP])
def test_nothing_is_wider_than_the_window_and_no_chart_is_cut(browser: Page, report_path: str, width: int) -> None:
    browser.open(f"file://{report_path}", width)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate(OVERHANGING) == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(MISPLACED) == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [SMALL_PHONE, PHONE])
def test_no_table_scrolls_sideways_on_a_phone(browser: Page, report_path: str, width: int) -> None:
    """Wide tables are stacked, each cell with its column's name; the others fit."""
    browser.open(f"file://{report_path}", width)
    assert browser.evaluate(SIDEWAYS.format(".scroll")) == []
    named = browser.evaluate(
        "[...document.querySelectorAll('.stacked td')].filter(td => td.textContent)"
        ".map(td => [td.dataset.label, getComputedStyle(td, '::before').content])"
    )
    assert len(named) > 40
    assert ["random", '"random: "'] in named
    browser.open(f"file://{report_path}", DESKTOP)
    assert browser.evaluate("getComputedStyle(document.querySelector('.stacked td')).display") == "table-cell"


@pytest.mark.slow
def test_what_scrolls_sideways_shows_that_there_is_more(browser: Page, report_path: str) -> None:
    """Blocks of commands: a shadow that belongs to the box, covered by what belongs to the content."""
    browser.open(f"file://{report_path}", PHONE)
    scrolling = browser.evaluate(SIDEWAYS.format("pre"))
    assert scrolling
    attachments = browser.evaluate("getComputedStyle(document.querySelector('pre')).backgroundAttachment")
    assert attachments == "local, local, scroll, scroll, scroll"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_text_stands_out_from_its_background(browser: Page, report_path: str, scheme: str) -> None:
    browser.open(f"file://{report_path}", DESKTOP, scheme=scheme)
    browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    contrasts = browser.evaluate(CONTRASTS)
    assert len(contrasts) > 200
    assert sum(is_chart for _, _, is_chart in contrasts) > 30
    assert [(words, ratio) for words, ratio, _ in contrasts if ratio < LEAST_CONTRAST] == []


@pytest.mark.slow
def test_the_dark_page_is_dark(browser: Page, report_path: str) -> None:
    colours = []
    for scheme in SCHEMES:
        browser.open(f"file://{report_path}", DESKTOP, scheme=scheme)
        colours.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(253, 253, 251)", "rgb(21, 23, 26)"]


@pytest.mark.slow
def test_the_page_of_an_empty_workspace_is_whole_too(browser: Page, write_recipe: Callable[..., str]) -> None:
    whole = RunRequest(recipe=write_recipe()).read()
    write_report(whole, gather(whole, FlowOutcome(), "http://127.0.0.1:5000", None))
    browser.open(f"file://{whole.run.workspace}/report.html", PHONE)
    assert browser.complaints == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE
    assert browser.evaluate("document.querySelectorAll('main > section').length") == len(SECTIONS)
