"""Reference curves: interpolation, the band, files, and runs that follow or leave one."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.training.trainer import Trainer

from flows.curve import main as write_curve
from pipelines.contract.errors import InputError
from training.alarms.bert_rules import BertAlarms
from training.alarms.reference_curve import OBSERVATIONS, SHIPPED_DIRECTORY, ReferenceCurve, read_reference
from training.engine.processes import Processes

SVG = "{http://www.w3.org/2000/svg}"
CURVE = ReferenceCurve(
    name="trial",
    about="",
    recipe_digest="d",
    settings={},
    curves={"mlm_loss": ((100.0, 8.0), (200.0, 6.0), (400.0, 5.0))},
)


@given(st.floats(100, 400))
def test_values_are_linear_between_points(tokens: float) -> None:
    expected = 8 - (tokens - 100) / 50 if tokens <= 200 else 6 - (tokens - 200) / 200
    assert CURVE.at("mlm_loss", tokens) == pytest.approx(expected)


def test_there_is_no_value_outside_the_curve() -> None:
    assert [CURVE.at("mlm_loss", tokens) for tokens in (99.0, 401.0)] == [None, None]
    assert [CURVE.at("mlm_loss", tokens) for tokens in (100.0, 400.0)] == [8.0, 5.0]
    assert CURVE.at("nsp_loss", 200.0) is None


@pytest.mark.parametrize(("value", "side"), [(6.31, "above"), (5.69, "below"), (6.29, None), (5.71, None)])
def test_a_run_outside_the_band_is_said_after_some_lines(value: float, side: str | None) -> None:
    alarms = BertAlarms(0, CURVE)
    lines = [alarms.observe(step, {"tokens": 200.0, "mlm_loss": value}) for step in range(OBSERVATIONS + 1)]
    said = [line for found in lines for line in found]
    assert [bool(found) for found in lines] == [False] * (OBSERVATIONS - 1) + [side is not None, False]
    assert all(f"is {side} the band of 5% around the reference trial, which has 6.000" in line for line in said)


def test_a_single_line_outside_is_noise() -> None:
    alarms = BertAlarms(0, CURVE)
    values = [7.0, 7.0, 6.0, 7.0, 7.0, 6.0]
    assert not any(alarms.observe(step, {"tokens": 200.0, "mlm_loss": value}) for step, value in enumerate(values))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file, and no curve of this name"),
        ("{}", "no reference curve"),
        ('{"name": "x", "about": "", "recipe_digest": "", "settings": {}, "curves": {"a": [[1]]}}', r"curves\.a\.0"),
    ],
)
def test_a_file_that_is_no_curve_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "curve.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_reference(str(path))


@pytest.mark.parametrize("path", sorted(Path(SHIPPED_DIRECTORY).glob("*.json")), ids=lambda path: path.stem)
def test_a_shipped_curve_has_losses_that_fall(path: Path) -> None:
    curve = read_reference(path.stem)
    assert curve.name == path.stem
    assert curve.about
    for points in (curve.curves["loss"], curve.curves["heldout_loss"]):
        assert [x for x, _ in points] == sorted(x for x, _ in points)
        assert points[-1][1] < points[0][1] - 1.0


@pytest.mark.usefixtures("one_thread")
def test_a_run_follows_its_own_curve_and_leaves_that_of_another(
    make_workspace: Callable[[str], Any], single_process: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = Trainer(make_workspace("reference"), single_process)
    assert train("pretraining.log_every_steps=1") == 0
    output = tmp_path / "own.json"
    assert write_curve([train.workspace.path, "--about", "synthetic", "--output", str(output)]) == 0
    curve = read_reference(str(output))
    assert curve.about == "synthetic"
    drawn = ElementTree.parse(tmp_path / "own.svg").getroot()
    titles = [element.text for element in drawn.iter(f"{SVG}title")]
    assert titles[1:] == [
        "loss",
        "loss, held out",
        *(f"{name} loss{more}" for name in ("MLM", "NSP") for more in ("", ", held out")),
    ]
    width, height = map(float, drawn.attrib["viewBox"].split()[2:])
    for polyline in drawn.iter(f"{SVG}polyline"):
        places = [tuple(map(float, place.split(","))) for place in polyline.attrib["points"].split()]
        assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    assert len(curve.curves["mlm_loss"]) == 4
    assert curve.curves["heldout_mlm_loss"][0][0] == 0.0

    again = Trainer(make_workspace("again"), single_process)
    reference = f"pretraining.reference={json.dumps(str(output))}"
    assert again("pretraining.log_every_steps=1", reference) == 0
    assert again.weights() == train.weights()
    # A loaded machine may give the alarm of a slow run.
    assert "the band of" not in capsys.readouterr().out

    moved = curve.model_copy(
        update={"curves": {"mlm_loss": tuple((x, y / 2) for x, y in curve.curves["mlm_loss"])}, "name": "half"}
    )
    output.write_text(moved.model_dump_json())
    other = Trainer(make_workspace("other"), single_process)
    assert other("pretraining.log_every_steps=1", reference) == 0
    assert "is above the band of 5% around the reference half" in capsys.readouterr().out
    refused = Trainer(make_workspace("refused"), single_process)
    with pytest.raises(InputError, match="no such file, and no curve of this name"):
        refused("pretraining.reference=nowhere")
    assert not Path(refused.directory).exists()
