"""Compare variants of a recipe on the same data with the same seeds: clozeworks study flows/studies/masking.toml

Stages that runs share are built once; runs that are complete are not repeated; one that fails leaves the others. The
table is printed, and written with curves and costs to study.html and study.json in the workspace of the study; study.md
has the table alone, study.svg the curves. In Prefect the study is a run, and each of its trainings a task of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from prefect import State, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Failed

from flows.comparison.execution import Train, require_runs, run_study, whole_study
from flows.comparison.page import study_page
from flows.comparison.results import Comparison, RunResult, as_json
from flows.comparison.study_file import Run, Study, read_study
from flows.comparison.summary import study_drawing, study_table
from flows.console.narration import Narrator
from flows.console.tables import shown
from flows.parameters.requests import StudyRequest
from flows.running.command import run_flow
from flows.running.flow import clozeworks_flow
from flows.running.progress_bar import artifact_key
from flows.servers.artifact_calls import told_to_prefect
from pipelines.commands.command_line import CommandParser
from pipelines.commands.process_exit import run_and_leave_in_order
from pipelines.commands.recipe_arguments import add_set_argument
from pipelines.contract import storage
from pipelines.contract.errors import EXIT_FAILED

PAGE_NAME, FIGURES_NAME, TABLE_NAME, DRAWING_NAME = "study.html", "study.json", "study.md", "study.svg"
_NAME = "study"


class StudyError(RuntimeError):
    """Runs of a study have failed; the message has a line for each."""

    def __init__(self, comparison: Comparison) -> None:
        failed = [result for result in comparison.results if result.problem is not None]
        left = len(comparison.results) - len(failed)
        lines = [f"{result.run.label}: {result.problem}" for result in failed]
        super().__init__(
            "\n".join(
                [f"{len(failed)} of {len(comparison.results)} runs have failed; the other {left} are kept", *lines]
            )
        )


@clozeworks_flow(_NAME)
def study(request: StudyRequest) -> None:
    """Train every variant with every seed, and compare them. Complete runs are skipped.

    Raises:
        InputError: the study or a recipe of it is not valid, or inputs are missing.
        StudyError: runs have failed; the others are compared.
    """
    opened = read_study(request.study, request.overrides)
    comparison = run_study(opened, _say, lambda found: _written(opened, found), _as_task)
    if any(result.problem is not None for result in comparison.results):
        raise StudyError(comparison)


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clozeworks study flows/studies/masking.toml --set pretraining.ranks=1",
    )
    parser.add_argument("study", help="TOML file of the study")
    add_set_argument(parser)
    parsed = parser.parse_args(arguments)
    opened = read_study(parsed.study, tuple(parsed.overrides))
    require_runs(opened)
    try:
        return run_flow(study, StudyRequest(study=parsed.study, overrides=opened.more), whole_study(opened))
    except StudyError as error:
        print(f"error: {shown(str(error).splitlines()[0])}", file=sys.stderr)
        return EXIT_FAILED


def table_lines(comparison: Comparison) -> list[str]:
    """The comparison for a terminal: one line for each measure and variant."""
    width = max(len(name) for name in comparison.variants)
    lines = []
    for metric in comparison.measures:
        lines.append(f"{shown(metric.label)} ({'more' if metric.more_is_better else 'less'} is better)")
        for name in comparison.variants:
            cell = comparison.cells[metric.name].get(name)
            if cell is None:
                lines.append(f"  {name:<{width}}  no value")
                continue
            spread = "" if cell.deviation is None else f" +- {cell.deviation:.4f} ({cell.num_seeds} seeds)"
            parts = [f"{cell.mean:.4f}{spread}"]
            if cell.difference is not None:
                error = "" if cell.difference_error is None else f" +- {cell.difference_error:.4f}"
                parts.append(f"difference {cell.difference:+.4f}{error}")
            if cell.published is not None:
                parts.append(f"published {cell.published:g}")
            lines.append(f"  {name:<{width}}  {', '.join(parts)}")
    return lines


def _as_task(run: Run, train: Train) -> RunResult:
    """Train as a task of Prefect, which has failed if the run has."""
    results: list[RunResult] = []

    def kept() -> str | None:
        results.append(train())
        return results[0].problem

    state: State[Any] = _train(run.label, kept, return_state=True)
    if not results:
        # Not a problem of the run, which `train` returns: raised as it is.
        state.result()
    return results[0]


# Prefect fills in the name: a label is a value of it, for one of a grid may have braces.
@task(name="train", task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False)
def _train(label: str, problem_of: Callable[[], str | None]) -> Any:
    del label
    problem = problem_of()
    return None if problem is None else Failed(message=problem)


def _say(line: str) -> None:
    # The logger of the flow or, within a task, of the task.
    Narrator(_NAME, get_run_logger()).event(shown(line))


def _written(opened: Study, comparison: Comparison) -> dict[str, str]:
    """Show the table, and write page and figures; returns them by name."""
    lines = table_lines(comparison)
    for line in lines:
        print(line, flush=True)
    _tell_table(opened, lines)
    figures = json.dumps(as_json(opened, comparison), indent=1) + "\n"
    made = {
        PAGE_NAME: study_page(opened, comparison),
        FIGURES_NAME: figures,
        TABLE_NAME: study_table(opened, comparison),
        DRAWING_NAME: study_drawing(comparison),
    }
    texts = {name: text for name, text in made.items() if text}
    for name, text in texts.items():
        storage.write_bytes(os.path.join(opened.config.workspace, name), text.encode())
    _say(f"written to {opened.config.workspace}: {', '.join(texts)}")
    return texts


@told_to_prefect
def _tell_table(opened: Study, lines: list[str]) -> None:
    """Create the table as an artifact."""
    quoted = "\n".join(f"    {line}" for line in lines)
    create_markdown_artifact(quoted, artifact_key(opened.config.name, _NAME), "Comparison of the study's variants")


if __name__ == "__main__":
    run_and_leave_in_order(main)
