"""The picture of a run's curves, and what happens where it cannot be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.pretraining.curves import CURVES_NAME, draw_curves

LINES = [{"step": step, "mlm_loss": 7.0 / step, "learning_rate": 1e-3, "timestamp_ms": 1} for step in (1, 2, 3)]


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def test_the_curves_are_drawn(metrics: Path) -> None:
    picture = metrics.with_name(CURVES_NAME)
    assert draw_curves(str(metrics), str(picture), "a run")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in metrics.parent.iterdir()) == sorted([CURVES_NAME, "metrics.jsonl"])


@pytest.mark.parametrize("fault", ["absent", "cut off", "no directory"])
def test_a_picture_that_cannot_be_drawn_costs_a_line(
    metrics: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = metrics.parent / "nowhere" / CURVES_NAME if fault == "no directory" else metrics.with_name(CURVES_NAME)
    if fault == "absent":
        metrics.unlink()
    elif fault == "cut off":
        metrics.write_text(metrics.read_text()[:-10])
    assert not draw_curves(str(metrics), str(picture), "a run")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{picture} was not drawn (")
    assert not picture.exists()
    assert not [path for path in metrics.parent.iterdir() if path.suffix != ".jsonl"]
