"""Zip the trials' predictions for gluebenchmark.com, or check such a zip.

    clozeworks glue submit --predictions WORKSPACE/finetuning [--output submission.zip]
                                       [--wnli-majority] [--fill-missing]
    clozeworks glue submit --check submission.zip

Reads predictions where fine-tuning writes them, in <task>/pretrained/predictions/. The server requires all eleven
files; equal predictions give an equal zip, byte for byte.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.commands.command_line import CommandParser
from pipelines.commands.lifeline import follow_lifeline
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.manifest import read_manifest
from pipelines.statistics.training import TrialStatistics
from training.glue.submission_checks import HEADER, SUBMITTED, archive_problems, rows_of, table_problems
from training.settings.glue import GLUE_TASKS, MAX_SCORE, Task

_TRIAL, _PREDICTIONS = "pretrained", "predictions"
_EARLIEST_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_EXAMPLE = "example: clozeworks glue submit --predictions workspaces/base/finetuning --wnli-majority"


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks glue submit",
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=_EXAMPLE,
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--predictions", metavar="DIR", help="a workspace's finetuning/ folder")
    action.add_argument("--check", metavar="ZIP", help="check a submission and print one line per problem")
    parser.add_argument("--output", metavar="ZIP", default="submission.zip", help="default: submission.zip")
    parser.add_argument(
        "--wnli-majority",
        action="store_true",
        help="predict WNLI's majority class, as BERT's authors did (appendix B.1): its dev set misleads",
    )
    parser.add_argument(
        "--fill-missing",
        action="store_true",
        help="predict the majority class, or STS-B's mean score, for tasks without predictions",
    )
    parsed = parser.parse_args(arguments)
    follow_lifeline()
    if parsed.check:
        check(parsed.check)
    else:
        submit(parsed.predictions, parsed.output, parsed.wnli_majority, parsed.fill_missing)
    return 0


def write_predictions(path: str, task: Task, values: npt.NDArray[np.float64]) -> None:
    """Write a trial's predictions in the format of a submission.

    Args:
        path: of the TSV file, written atomically.
        task: determines the meaning of the values.
        values: [rows], class numbers, or scores for regression, which are clipped to 0 to 5.

    Raises:
        InputError: a score is not a finite number.
    """
    if task.is_regression:
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise InputError(
                f"{path}: prediction {bad[0]} is {values[bad[0]]}: the model has diverged; lower the learning rate"
            )
        answers = [f"{value:.3f}" for value in np.clip(values, 0.0, MAX_SCORE).tolist()]
    else:
        numbers = values.astype(np.int64)
        assert (numbers == values).all(), path
        assert ((numbers >= 0) & (numbers < task.num_labels)).all(), path
        answers = [task.labels[number] for number in numbers.tolist()]
    storage.write_bytes(path, table_of(answers))


def table_of(answers: list[str]) -> bytes:
    """A file of predictions: the header, and the predictions numbered from 0."""
    return "".join([f"{HEADER}\n", *(f"{index}\t{answer}\n" for index, answer in enumerate(answers))]).encode()


def submit(predictions: str, output: str, wnli_majority: bool, fill_missing: bool) -> None:
    """Collect the trials' predictions into a zip, and check it.

    Args:
        predictions: a workspace's finetuning/ folder.
        output: the zip to write.
        wnli_majority: always predict WNLI's majority class.
        fill_missing: predict the majority class for all files that no trial has written.

    Raises:
        InputError: predictions are missing, or one of their files is invalid.
    """
    tables: dict[str, bytes] = {}
    missing, problems = [], []
    for name, task in SUBMITTED.items():
        collected = _Collected(predictions, name, task)
        if task.name == "wnli" and wnli_majority:
            tables[name] = _majority_table(name, task, "because of --wnli-majority")
        elif storage.file_size_bytes(collected.path) is not None:
            tables[name] = storage.read_bytes(collected.path)
            problems += table_problems(name, collected.path, tables[name])
            _say(f"{name}.tsv: {collected.path}{collected.score_text()}")
        elif fill_missing:
            tables[name] = _majority_table(name, task, f"because {collected.path} is missing")
        else:
            missing.append(name)
    if missing:
        tasks = dict.fromkeys(_trained_task(SUBMITTED[name]) for name in missing)
        raise InputError(
            f"{predictions}: no predictions for {', '.join(missing)}; the server needs all {len(SUBMITTED)} files: "
            f"run clozeworks finetune --tasks {' '.join(tasks)} with the test files in finetuning.glue_dir (AX is "
            "AX/diagnostic.tsv there), or pass --fill-missing"
        )
    if not any(storage.file_size_bytes(_Collected(predictions, *each).path) is not None for each in SUBMITTED.items()):
        raise InputError(f"{predictions}: has no trial's predictions; give a workspace's finetuning/ folder")
    _refuse(predictions, problems)
    storage.write_bytes(output, zip_of(tables))
    check(output)
    _say_dev_averages(predictions)


def check(path: str) -> None:
    """Check a submission's zip and print one line per problem.

    Raises:
        InputError: it has problems.
    """
    _refuse(path, archive_problems(path))
    _say(f"{path}: {len(SUBMITTED)} files, valid for submission")


@dataclass(frozen=True)
class _Collected:
    """The source of a submission's file."""

    directory: str
    name: str
    task: Task

    @property
    def trial(self) -> str:
        return storage.join(self.directory, _trained_task(self.task), _TRIAL)

    @property
    def path(self) -> str:
        return storage.join(self.trial, _PREDICTIONS, f"{self.name}.tsv")

    def score_text(self) -> str:
        manifest = read_manifest(self.trial)
        if manifest is None:
            return " (warning: the trial has no manifest.json, it did not finish)"
        statistics = manifest.statistics_as(TrialStatistics)
        return f" (dev {statistics.metric} {statistics.score:.4f})"


def _trained_task(task: Task) -> str:
    return task.predicted_by or task.name


def _majority_table(name: str, task: Task, why: str) -> bytes:
    _say(f"{name}.tsv: every row is {task.majority}, {why}")
    return table_of([task.majority] * rows_of(name))


def _refuse(path: str, problems: list[str]) -> None:
    for problem in problems:
        _say(problem)
    if problems:
        raise InputError(f"{path}: {len(problems)} problem{'s' * (len(problems) > 1)}, listed above")


def zip_of(tables: dict[str, bytes]) -> bytes:
    """A submission's zip from its files by name: fixed date and order, and stored, as deflate differs by library."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in tables.items():
            info = zipfile.ZipInfo(f"{name}.tsv", _EARLIEST_ZIP_DATE)
            info.create_system, info.external_attr = _UNIX, 0o644 << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def dev_results(directory: str) -> dict[str, dict[str, float]]:
    """Metrics on the development sets by submission name, from the manifests of the complete trials."""
    results: dict[str, dict[str, float]] = {}
    for task in GLUE_TASKS:
        manifest = read_manifest(storage.join(directory, task.name, _TRIAL))
        if manifest is not None:
            statistics = manifest.statistics_as(TrialStatistics)
            sets = [statistics.dev, *([statistics.mismatched] if statistics.mismatched is not None else [])]
            results.update(zip(task.submissions, sets, strict=False))
    return results


def _say_dev_averages(directory: str) -> None:
    from training.glue.metrics import leaderboard_average, paper_average

    results = dev_results(directory)
    missing = {name for name, task in SUBMITTED.items() if not task.predicted_by} - results.keys()
    if missing <= {"WNLI"}:
        _say(
            f"dev sets, without WNLI: average {100 * paper_average(results):.1f} counted as in BERT's table 1, "
            f"{100 * leaderboard_average(results, with_wnli=False):.1f} as on the leaderboard"
        )
    if not missing:
        _say(f"dev sets, with WNLI: average {100 * leaderboard_average(results):.1f} counted as on the leaderboard")


def _say(line: str) -> None:
    print(f"submission: {line}", flush=True)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
