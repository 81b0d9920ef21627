"""Compare variants of a recipe on the same data with the same seeds: clozeworks study flows/studies/masking.toml

Stages that runs share are built once; runs that are complete are not repeated; one that fails leaves the others. The
table is printed, and written with curves and costs to study.html and study.json in the workspace of the study.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from collections.abc import Callable

from flows.comparison.execution import run_study
from flows.comparison.page import study_page
from flows.comparison.results import Comparison, as_json
from flows.comparison.study_file import Study, read_study
from flows.console.tables import shown
from pipelines.commands.command_line import CommandParser
from pipelines.commands.recipe_arguments import add_set_argument
from pipelines.contract import storage
from pipelines.contract.errors import EXIT_FAILED, exit_code_of

PAGE_NAME, FIGURES_NAME = "study.html", "study.json"


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
    study = read_study(parsed.study, tuple(parsed.overrides))
    guard = threading.Lock()

    def say(line: str) -> None:
        with guard:
            print(f"study: {shown(line)}", flush=True)

    comparison = run_study(study, say, lambda found: _written(study, found, say))
    return EXIT_FAILED if any(result.problem for result in comparison.results) else 0


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


def _written(study: Study, comparison: Comparison, say: Callable[[str], None]) -> dict[str, str]:
    """Show the table, and write page and figures; returns them by name."""
    for line in table_lines(comparison):
        print(line, flush=True)
    figures = json.dumps(as_json(study, comparison), indent=1) + "\n"
    texts = {PAGE_NAME: study_page(study, comparison), FIGURES_NAME: figures}
    for name, text in texts.items():
        storage.write_bytes(os.path.join(study.config.workspace, name), text.encode())
    page, figures = (os.path.join(study.config.workspace, name) for name in texts)
    say(f"written to {page} and {figures}")
    return texts


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
