"""Predictions of trials become the zip that gluebenchmark.com takes, and what is wrong with one is said in lines."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.support.statistics import statistics_with

from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.manifest import StageKey, write_manifest
from pipelines.statistics.training import TrialStatistics
from training.glue import submission
from training.glue.reading import read_test
from training.glue.submission import table_of, write_predictions, zip_of
from training.glue.submission_checks import SUBMITTED, archive_problems, rows_of, table_problems
from training.settings.glue import TASKS

ROWS = {
    "CoLA": 1063, "SST-2": 1821, "MRPC": 1725, "STS-B": 1379, "QQP": 390965, "MNLI-m": 9796, "MNLI-mm": 9847,
    "QNLI": 5463, "RTE": 3000, "WNLI": 146, "AX": 1104,
}  # fmt: skip
WORDS = {"MNLI-m", "MNLI-mm", "AX", "QNLI", "RTE"}


def values_of(name: str) -> np.ndarray:
    generator = np.random.default_rng(7)
    task = SUBMITTED[name]
    if task.is_regression:
        return generator.normal(2.5, 2.5, ROWS[name])
    return generator.integers(0, task.num_labels, ROWS[name]).astype(np.float64)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace's finetuning/ with predictions of all tasks."""
    directory = tmp_path_factory.mktemp("finetuning")
    for name, task in SUBMITTED.items():
        trial = directory / (task.predicted_by or task.name) / "pretrained"
        write_predictions(str(trial / "predictions" / f"{name}.tsv"), task, values_of(name))
    return directory


def run(*arguments: str) -> int:
    return exit_code_of(lambda: submission.main(list(arguments)))


def members_of(path: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode().split("\n") for name in archive.namelist()}


@pytest.mark.slow
def test_the_zip_holds_what_the_models_answered(
    trials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "submission.zip"
    assert run("--predictions", str(trials), "--output", str(output)) == 0
    members = members_of(output)
    assert list(members) == [f"{name}.tsv" for name in ROWS]
    for name, count in ROWS.items():
        header, *rows, end = members[f"{name}.tsv"]
        assert (header, end, len(rows)) == ("index\tprediction", "", count)
        assert [row.split("\t")[0] for row in rows] == [str(index) for index in range(count)]
        answers, values = [row.split("\t")[1] for row in rows], values_of(name)
        if name == "STS-B":
            assert all(len(answer) == 5 for answer in answers)
            assert {min(answers), max(answers)} == {"0.000", "5.000"}
            np.testing.assert_allclose(np.array(answers, dtype=float), np.clip(values, 0, 5), atol=0.0005001)
        else:
            assert answers == [SUBMITTED[name].labels[int(value)] for value in values]
            assert all(answer.isalpha() or "_" in answer for answer in answers) == (name in WORDS)
    assert "it did not finish" in capsys.readouterr().out
    assert run("--check", str(output)) == 0
    assert capsys.readouterr().out == f"submission: {output}: 11 files, valid for submission\n"


@pytest.mark.slow
def test_equal_predictions_give_equal_bytes(trials: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.zip", tmp_path / "second.zip"
    for output in (first, second):
        assert run("--predictions", str(trials), "--output", str(output)) == 0
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        for info in archive.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.compress_type == zipfile.ZIP_STORED
            assert (info.create_system, info.flag_bits) == (3, 0)


@pytest.mark.slow
def test_wnli_by_majority(trials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "submission.zip"
    assert run("--predictions", str(trials), "--output", str(output), "--wnli-majority") == 0
    assert "WNLI.tsv: every row is 0, because of --wnli-majority" in capsys.readouterr().out
    members = members_of(output)
    assert set(members["WNLI.tsv"][1:-1]) == {f"{index}\t0" for index in range(146)}
    assert len({row.split("\t")[1] for row in members["RTE.tsv"][1:-1]}) == 2


@pytest.mark.slow
def test_missing_tasks_are_named_or_filled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials, output = tmp_path / "finetuning", tmp_path / "submission.zip"
    for name in ("MNLI-m", "MNLI-mm"):
        path = trials / "mnli" / "pretrained" / "predictions" / f"{name}.tsv"
        write_predictions(str(path), TASKS["mnli"], values_of(name))
    assert run("--predictions", str(trials), "--output", str(output)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no predictions for CoLA, SST-2, MRPC, STS-B, QQP, QNLI, RTE, WNLI, AX; the server needs all 11" in error
    assert "--tasks cola sst-2 mrpc sts-b qqp qnli rte wnli mnli" in error
    assert not output.exists()

    assert run("--predictions", str(trials), "--output", str(output), "--fill-missing") == 0
    shown = capsys.readouterr().out
    assert "CoLA.tsv: every row is 1, because" in shown
    assert "MNLI-m.tsv: every row" not in shown
    members = members_of(output)
    assert set(members["STS-B.tsv"][1:-1]) == {f"{index}\t2.701" for index in range(1379)}
    assert members["MNLI-mm.tsv"][1] == f"0\t{TASKS['mnli'].labels[int(values_of('MNLI-mm')[0])]}"


def test_real_test_files_have_the_rows_that_the_server_expects(shared_data: Path) -> None:
    assert {name: rows_of(name) for name in SUBMITTED} == ROWS
    for name in ("CoLA", "MRPC", "STS-B", "QNLI", "RTE", "WNLI"):
        task = SUBMITTED[name]
        assert len(read_test(task, str(shared_data / "glue" / task.folder / "test.tsv"))) == ROWS[name]


def rte(change: Callable[[list[str]], list[str]]) -> bytes:
    lines = table_of(["entailment"] * 3000).decode().split("\n")
    return "\n".join(change(lines)).encode()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (rte(lambda lines: lines), []),
        (rte(lambda lines: lines[:-1]), []),
        (b"", ["RTE.tsv: is empty; expected the header 'index\\tprediction' and 3000 rows"]),
        (b"index\xff", ["RTE.tsv: not UTF-8 at byte 5"]),
        (rte(lambda lines: lines[1:]), [
            "RTE.tsv:1: header is '0\\tentailment'; expected 'index\\tprediction'",
            "RTE.tsv: has 2,999 rows; the test set of RTE has 3,000",
            "RTE.tsv:2: index is '1'; expected 0 (and 2,998 more rows)",
        ]),
        (rte(lambda lines: [*lines[:5], "4 entailment", *lines[6:]]), ["RTE.tsv:6: has 1 columns; expected 2"]),
        (rte(lambda lines: [*lines[:5], "4\t0", "5\tEntailment", *lines[7:]]), [
            "RTE.tsv:6: prediction is '0'; expected one of entailment, not_entailment (and 1 more rows)",
        ]),
        (rte(lambda lines: [line + "\r" for line in lines[:-1]]), [
            "RTE.tsv:1: header is 'index\\tprediction\\r'; expected 'index\\tprediction'",
            "RTE.tsv:2: prediction is 'entailment\\r'; expected one of entailment, not_entailment"
            " (and 2,999 more rows)",
        ]),
    ],
)  # fmt: skip
def test_each_problem_of_a_table_is_a_line(data: bytes, expected: list[str]) -> None:
    assert table_problems("RTE", "RTE.tsv", data) == expected


@pytest.mark.parametrize(
    ("answer", "fine"),
    [("0", True), ("5.000", True), ("2.5e0", True), ("5.001", False), ("-0.1", False), ("nan", False), ("inf", False),
     ("", False), (" 1", False), ("1_0", False), ("high", False), ("1e", False)],
)  # fmt: skip
def test_scores_are_numbers_in_range(answer: str, fine: bool) -> None:
    problems = table_problems("STS-B", "STS-B.tsv", table_of(["1.0"] * 1378 + [answer]))
    wrong = f"STS-B.tsv:1380: prediction is {answer!r}; expected a number from 0 to 5"
    assert problems == ([] if fine else [wrong])


@pytest.mark.slow
def test_check_names_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = {name: table_of([task.majority] * ROWS[name]) for name, task in SUBMITTED.items()}
    tables["CoLA"] = table_of(["2"] * 1063)
    del tables["AX"]
    path = tmp_path / "submission.zip"
    path.write_bytes(zip_of({**tables, "predictions/RTE": b""}))
    assert run("--check", str(path)) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"submission: {path}: has predictions/RTE.tsv, which is not one of the 11 files of a submission",
        "submission: CoLA.tsv:2: prediction is '2'; expected one of 0, 1 (and 1,062 more rows)",
        f"submission: {path}: has no AX.tsv, but the server needs all 11 files",
    ]
    assert captured.err == f"error: {path}: 3 problems, listed above\n"

    buffer = io.BytesIO(zip_of(tables))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("RTE.tsv", b"")
    path.write_bytes(buffer.getvalue())
    assert f"{path}: has RTE.tsv 2 times" in archive_problems(str(path))
    path.write_bytes(buffer.getvalue()[:1000])
    with pytest.raises(InputError, match=r"submission\.zip: not a readable zip"):
        archive_problems(str(path))
    assert run("--check", str(tmp_path / "absent.zip")) == 2
    assert "absent.zip: missing" in capsys.readouterr().err


def test_a_damaged_prediction_file_stops_the_zip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "finetuning" / "rte" / "pretrained" / "predictions" / "RTE.tsv"
    path.parent.mkdir(parents=True)
    path.write_bytes(table_of(["entailment"] * 2999))
    output = tmp_path / "submission.zip"
    command = ("--predictions", str(tmp_path / "finetuning"), "--output", str(output), "--fill-missing")
    assert run(*command) == 2
    captured = capsys.readouterr()
    assert f"submission: {path}: has 2,999 rows; the test set of RTE has 3,000\n" in captured.out
    assert captured.err.endswith("1 problem, listed above\n")
    assert not output.exists()


def test_predictions_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "STS-B.tsv"
    with pytest.raises(InputError, match=r"STS-B\.tsv: prediction 2 is nan: the model has diverged"):
        write_predictions(str(path), TASKS["sts-b"], np.array([0.0, 7.0, np.nan]))
    with pytest.raises(AssertionError):
        write_predictions(str(path), TASKS["rte"], np.array([0.0, 2.0]))
    with pytest.raises(AssertionError):
        write_predictions(str(path), TASKS["rte"], np.array([0.5]))
    assert not path.exists()


@pytest.mark.slow
def test_dev_scores_are_told_with_their_averages(
    trials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "submission.zip"
    for name, task in SUBMITTED.items():
        if task.predicted_by or name == "MNLI-mm":
            continue
        dev = dict.fromkeys((*task.metrics, *task.also_reported), 0.5) | {task.metric: 0.8}
        more = {"mismatched": {"accuracy": 0.7}} if task.name == "mnli" else {}
        statistics = statistics_with(TrialStatistics, metric=task.metric, score=0.8, dev=dev, **more)
        trial = str(trials / task.name / "pretrained")
        write_manifest(trial, StageKey("finetuning", 1, {}, {}).manifest([], statistics, "test"))
    try:
        assert run("--predictions", str(trials), "--output", str(output)) == 0
    finally:
        for manifest in trials.rglob("manifest.json"):
            manifest.unlink()
    shown = capsys.readouterr().out
    assert "CoLA.tsv (dev matthews_correlation 0.8000)" in shown
    # (8 x 0.8 + 0.7) / 9; three tasks of two metrics 0.65, MNLI 0.75, four others 0.8; WNLI 0.8 more.
    assert "without WNLI: average 78.9 counted as in BERT's table 1, 73.8 as on the leaderboard" in shown
    assert "with WNLI: average 74.4 counted as on the leaderboard" in shown


def test_a_zip_of_made_up_answers_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "submission.zip"
    assert run("--predictions", str(tmp_path / "mistyped"), "--fill-missing", "--output", str(output)) == 2
    assert "has no trial's predictions; give a workspace's finetuning/ folder" in capsys.readouterr().err
    assert not output.exists()
