"""Means, deviations and paired differences, against numpy and scipy; the page and the table of made-up results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from flows.comparison.page import study_page
from flows.comparison.results import Comparison, RunResult, as_json, compared
from flows.comparison.study_file import Run, Study, read_study
from flows.comparison.summary import study_drawing, study_table
from flows.study import table_lines
from pipelines.statistics.metrics import Metric

ACCURACY = Metric("mlm_accuracy", "MLM accuracy", "share", more_is_better=True)
LOSS = Metric("mlm_loss", "MLM loss", "nats")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "study.toml"
    path.write_text(
        '[study]\nname = "trial"\nbase = "r.toml"\nworkspace = "w"\nseeds = [1, 2, 3]\nquestion = "Do <i>pairs help?"\n'
        '[[study.variants]]\nname = "base"\n[[study.variants]]\nname = "other"\npublished = { mlm_accuracy = 0.4 }\n'
    )
    return read_study(str(path))


def results_of(values: dict[str, list[float]]) -> list[RunResult]:
    return [
        RunResult(
            Run(variant, seed, ()),
            {"mlm_accuracy": value, "mlm_loss": 1 / value},
            tokens=1_000,
            flops=2e9,
            seconds=30.0,
            curves={"mlm_accuracy": [(0, 0.0), (10, value)]},
        )
        for variant, own in values.items()
        for seed, value in enumerate(own, start=1)
    ]


def made(study: Study) -> tuple[Comparison, np.ndarray, np.ndarray]:
    values = {"base": [0.30, 0.32, 0.29], "other": [0.33, 0.31, 0.34]}
    first, second = (np.array(own) for own in values.values())
    return compared(study, results_of(values), [ACCURACY, LOSS, ACCURACY]), first, second


def test_the_figures_are_those_of_numpy_and_scipy(study: Study) -> None:
    comparison, first, second = made(study)
    assert comparison.measures == (ACCURACY, LOSS)
    base, other = (comparison.cells["mlm_accuracy"][name] for name in ("base", "other"))
    assert (base.difference, base.difference_error) == (None, None)
    assert base.mean == pytest.approx(first.mean())
    assert base.deviation == pytest.approx(first.std(ddof=1))
    assert other.difference == pytest.approx((second - first).mean())
    assert other.difference_error == pytest.approx(stats.sem(second - first))
    assert other.published == 0.4


def test_a_failed_run_is_left_out_of_the_pairs(study: Study) -> None:
    results = results_of({"base": [0.30, 0.32], "other": [0.33, 0.31]})
    failed = [RunResult(Run("base", 3, ()), problem="no data"), RunResult(Run("other", 3, ()), {"mlm_accuracy": 0.5})]
    comparison = compared(study, [*results, *failed], [ACCURACY])
    other = comparison.cells["mlm_accuracy"]["other"]
    assert other.num_seeds == 3
    assert other.difference == pytest.approx(0.01)
    page = study_page(study, comparison)
    assert "base, seed 3" in page
    assert "5 of 6 runs are complete" in page


def test_page_table_and_figures_hold_the_comparison(study: Study) -> None:
    comparison, first, second = made(study)
    page = study_page(study, comparison)
    assert "Do &lt;i&gt;pairs help?" in page
    assert page == study_page(study, comparison)
    for part in ("Study trial", "difference to base", "+0.0233", "published", "2.00e+09", "<svg"):
        assert part in page, part
    lines = table_lines(comparison)
    assert lines[0] == "MLM accuracy (more is better)"
    error = stats.sem(second - first)
    assert lines[2].split()[1:6] == [f"{second.mean():.4f}", "+-", f"{second.std(ddof=1):.4f}", "(3", "seeds),"]
    assert lines[2].endswith(f"difference +0.0233 +- {error:.4f}, published 0.4")
    figures = json.loads(json.dumps(as_json(study, comparison)))
    assert figures["cells"]["mlm_accuracy"]["other"]["mean"] == pytest.approx(second.mean())
    assert len(figures["runs"]) == 6


def test_a_table_and_a_drawing_for_a_repository(study: Study) -> None:
    comparison, first, second = made(study)
    error = stats.sem(second - first)
    assert study_table(study, comparison).splitlines() == [
        "# trial",
        "",
        "Do <i>pairs help?",
        "",
        "|  | MLM accuracy (more is better) | MLM loss (less is better) | published, MLM accuracy |",
        "| --- | --- | --- | --- |",
        f"| base | {first.mean():.4f} +- {first.std(ddof=1):.4f} | {_loss(comparison, 'base')} |  |",
        f"| other | {second.mean():.4f} +- {second.std(ddof=1):.4f} (+0.0233 +- {error:.4f}) "
        f"| {_loss(comparison, 'other')} | 0.4 |",
        "",
        "Means over 3 seeds +- standard deviation; in brackets the paired difference to base +- its standard error. "
        "6 of 6 runs are complete.",
    ]
    drawing = study_drawing(comparison)
    assert drawing.startswith("<svg")
    assert "MLM accuracy, held out" in drawing
    assert study_drawing(compared(study, [], [ACCURACY])) == ""


def _loss(comparison: Comparison, variant: str) -> str:
    cell = comparison.cells["mlm_loss"][variant]
    difference = "" if cell.difference is None else f" ({cell.difference:+.4f} +- {cell.difference_error:.4f})"
    return f"{cell.mean:.4f} +- {cell.deviation:.4f}{difference}"
