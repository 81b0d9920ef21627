"""Write the curves of a finished pre-training for other runs to compare with: clozeworks curve workspaces/demo

The file is read by `clozeworks pretrain --reference FILE`, which warns when a run leaves the band around it, and by the
report, which draws it. Values are by tokens, so that batches may differ. The losses are also drawn, in an .svg next to
the file.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from flows.report.charts import line_chart, standalone
from flows.report.result_sections import curve_lines
from pipelines.commands.command_line import CommandParser
from pipelines.contract import storage
from pipelines.contract.errors import exit_code_of
from pipelines.contract.manifest import require_manifest
from pipelines.contract.workspace import EXAMPLES, PRETRAINING
from pipelines.statistics.metrics import Metric
from pipelines.statistics.training import PretrainingStatistics
from training.alarms.reference_curve import ReferenceCurve, curve_of


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks curve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: clozeworks curve workspaces/novels --about '70 English novels' --output novels.json",
    )
    parser.add_argument("workspace", help="workspace with a finished pre-training")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON file to write")
    parser.add_argument("--about", default="", help="the text that the run was trained on, in words")
    parsed = parser.parse_args(arguments)
    directory = storage.join(parsed.workspace, PRETRAINING)
    manifest = require_manifest(directory, PRETRAINING, "clozeworks pretrain")
    examples = require_manifest(storage.join(parsed.workspace, EXAMPLES), EXAMPLES, "clozeworks examples")
    name = os.path.splitext(os.path.basename(parsed.output))[0]
    curve = curve_of(name, parsed.about, directory, manifest, examples)
    storage.write_bytes(parsed.output, curve.model_dump_json().encode() + b"\n")
    losses = [metric for metric in manifest.statistics_as(PretrainingStatistics).metrics if metric.unit == "nats"]
    if drawn := drawing(curve, losses):
        storage.write_bytes(f"{os.path.splitext(parsed.output)[0]}.svg", drawn.encode())
    points = sum(map(len, curve.curves.values()))
    print(f"curve: {len(curve.curves)} metrics, {points} points, recipe {curve.recipe_digest[:12]}: {parsed.output}")
    return 0


def drawing(curve: ReferenceCurve, losses: Sequence[Metric]) -> str:
    """The losses of a curve by tokens as an SVG file, held-out ones dotted; empty without any."""
    lines = curve_lines(curve.curves, losses)
    chart = line_chart(f"{curve.name}: loss by tokens", "tokens", lines)
    return standalone(chart, lines) if chart else ""


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
