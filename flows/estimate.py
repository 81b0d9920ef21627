"""Show what a recipe will cost before it starts: examples, disk of each stage, CPU and GPU time, operations, memory.

clozeworks estimate flows/recipes/bert-base.toml --corpus-bytes 16e9 --gpu h100
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import asdict, replace
from typing import Any

from flows.console.tables import print_table, shown
from flows.inspection.costs import GPUS, REGISTRY, Estimate, estimate
from flows.inspection.rates import CPU_BASIS, Rates, default_rates, measured_rates
from flows.inspection.workspace import in_words
from flows.parameters.whole_recipe import WholeRecipe
from flows.running.plan import possible_place
from pipelines.commands.command_line import CommandParser
from pipelines.commands.cores import available_cores
from pipelines.commands.recipe_arguments import add_recipe_arguments, recipe_from_arguments
from pipelines.contract import storage
from pipelines.contract.errors import InputError, exit_code_of
from pipelines.contract.recipe import Recipe
from pipelines.contract.workspace import FINETUNING, PRETRAINING, VOCABULARY
from pipelines.reading.unpacking import codec_of
from pipelines.settings.formats import FORMATS
from pipelines.sources.formats import find_inputs
from pipelines.vocabularies.reading import size_of
from training.stages.encoders import is_elsewhere
from training.stages.initial_encoder import model_at_hand, resolved_encoder

UTILIZATION = 0.5
"""Assumed model FLOPs utilisation; a run prints its own (MFU) and stores it in metrics.jsonl."""
RANKS = 8

_NOT_GIVEN = "not given"


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="clozeworks estimate",
        description="Show what a recipe will cost before it starts.",
        epilog="example: clozeworks estimate flows/recipes/bert-base.toml --corpus-bytes 16e9 --gpu h100",
    )
    add_recipe_arguments(parser)
    parser.add_argument(
        "--corpus-bytes", type=float, metavar="N", help="bytes of plain text; default: the size of the recipe's sources"
    )
    parser.add_argument("--from-workspace", metavar="DIR", help="use rates measured in this workspace")
    parser.add_argument(
        "--gpu",
        choices=sorted(GPUS),
        help="show hours for this GPU only; default: this machine's CPU and all known GPUs",
    )
    parser.add_argument("--peak-tflops", type=float, metavar="T", help="show hours for a device of this peak instead")
    parser.add_argument(
        "--utilization",
        type=float,
        default=UTILIZATION,
        help=f"share of the peak that training reaches; default {UTILIZATION}",
    )
    parser.add_argument("--tokens-per-second", type=float, metavar="N", help="a measured rate, summed over all devices")
    parser.add_argument(
        "--ranks", type=int, default=0, help=f"devices; default: pretraining.ranks, or {RANKS} where that is 0"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument(
        "--continue",
        dest="continued",
        action="store_true",
        help="count only the steps that pre-training with --continue takes from a checkpoint of the finished run",
    )
    parsed = parser.parse_args(arguments)
    _require_positive(parsed)
    whole = WholeRecipe.check(_without_missing_files(recipe_from_arguments(parsed)))
    # A vocabulary that is brought decides its size.
    sized = whole.vocabulary.model_copy(update={"size": size_of(whole.vocabulary)})
    whole = replace(whole, vocabulary=sized)
    text_bytes, notes = (parsed.corpus_bytes, []) if parsed.corpus_bytes else _size_of_sources(whole)
    if parsed.continued:
        whole, note = _continued(whole)
        notes = [*notes, note]
    rates = measured_rates(whole, parsed.from_workspace) if parsed.from_workspace else default_rates(whole)
    ranks = parsed.ranks or whole.pretraining.ranks or RANKS
    result = estimate(whole, rates, text_bytes, ranks)
    hours = _hours(result, rates, parsed)
    warnings = [*notes, *_unknown_model(whole), *result.warnings]
    if parsed.json:
        print(json.dumps(_as_json(result, rates, hours, ranks, warnings), indent=1))
    else:
        _show(whole, result, rates, hours, ranks, warnings)
    return 0


def _require_positive(parsed: argparse.Namespace) -> None:
    for name in ("corpus_bytes", "peak_tflops", "tokens_per_second", "utilization"):
        value = getattr(parsed, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} {value:g}: give a number above 0")
    if parsed.utilization > 1:
        raise InputError(f"--utilization {parsed.utilization:g}: a share of the peak is at most 1")
    if parsed.ranks < 0:
        raise InputError(f"--ranks {parsed.ranks}: give 1 or more, or leave it out")


def _without_missing_files(recipe: Recipe) -> Recipe:
    """The recipe with placeholders for task files that it does not name: an estimate reads none of them."""
    table = dict(recipe.tables.get("finetuning", {}))
    table.setdefault("glue_dir", _NOT_GIVEN)
    for section in ("squad", "tagging"):
        if isinstance(table.get(section, {}), dict):
            table[section] = {"train_file": _NOT_GIVEN, "dev_file": _NOT_GIVEN, **table.get(section, {})}
    return replace(recipe, tables={**recipe.tables, "finetuning": table})


def _continued(whole: WholeRecipe) -> tuple[WholeRecipe, str]:
    """The recipe with the steps that are left after the checkpoint that `--continue` takes, and a note of it.

    Raises:
        InputError: a run with `--continue` would not start from a checkpoint of a finished run.
    """
    place = possible_place(whole)
    if place is None:
        raise InputError(
            f"{whole.recipe.path}: --continue: {whole.run.workspace} has no finished pre-training with a checkpoint "
            "that this recipe would continue from; leave --continue out"
        )
    first, *others = whole.pretraining.phases[place.phase :]
    assert first.steps is not None, "only phases by steps are continued"
    phases = (first.model_copy(update={"steps": first.steps - place.phase_step}), *others)
    left = replace(whole, pretraining=whole.pretraining.model_copy(update={"phases": phases}))
    steps = left.pretraining.num_train_steps or 0
    return left, f"pre-training continues from step {place.step:,} of the finished run: {steps:,} steps are left"


def _size_of_sources(whole: WholeRecipe) -> tuple[float, list[str]]:
    """Bytes of the recipe's inputs, and a warning for each source that is not plain text."""
    try:
        found = find_inputs(whole.documents, whole.run.workspace)
    except InputError as error:
        raise InputError(f"{error}; or give the size of its text with --corpus-bytes") from error
    notes = []
    for index, (source, files) in enumerate(zip(whole.documents.sources, found, strict=True)):
        packed = any(codec_of(file.name) is not None for file in files)
        if packed or not FORMATS[source.format].is_plain:
            what = "compressed" if packed else f"format {source.format}"
            notes.append(
                f"documents.sources.{index}: {what}, so its bytes are not those of its text; give these with "
                "--corpus-bytes"
            )
    return float(sum(file.range_bytes for files in found for file in files)), notes


def _unknown_model(whole: WholeRecipe) -> list[str]:
    """A warning if the model's sizes are those of an encoder that is not on this machine, or not found."""
    source = whole.pretraining.initial_encoder
    if source is None or model_at_hand(whole.model, source, whole.recipe.path) is not None:
        return []
    if not is_elsewhere(source):
        try:
            resolved_encoder(source)
        except InputError as error:
            return [f"pretraining.initial_encoder: {error}; until then sizes are those of [model]"]
    return [f"pretraining.initial_encoder = {source} is not on this machine: sizes are those of [model]"]


def _hours(result: Estimate, rates: Rates, parsed: argparse.Namespace) -> list[dict[str, Any]]:
    """Device hours, each with the rate it is based on."""
    rows: list[dict[str, Any]] = []
    if parsed.tokens_per_second:
        hours = result.tokens / parsed.tokens_per_second / 3600
        rows.append({"on": "as given", "hours": hours, "basis": f"{parsed.tokens_per_second:,.0f} tokens/s"})
    if parsed.peak_tflops:
        hours = result.gpu_seconds(parsed.peak_tflops, parsed.utilization) / 3600
        basis = f"{parsed.utilization:.0%} of {parsed.peak_tflops:g} TFLOP/s"
        rows.append({"on": "one such device", "hours": hours, "basis": basis})
    if rates.training is not None:
        speed = rates.training
        basis = f"{speed.flops_per_second / 1e12:.3g} TFLOP/s measured, {speed.tokens_per_second:,.0f} tokens/s"
        hours = result.flops / speed.flops_per_second / 3600
        rows.append({"on": f"the machine of {parsed.from_workspace}", "hours": hours, "basis": basis})
    if not (parsed.tokens_per_second or parsed.peak_tflops or parsed.gpu):
        cores = available_cores()
        hours = result.cores_seconds(cores) / 3600
        rows.append({"on": f"this machine's CPU, {cores} core{'s' * (cores > 1)}", "hours": hours, "basis": CPU_BASIS})
    if not (parsed.tokens_per_second or parsed.peak_tflops):
        for gpu in [GPUS[parsed.gpu]] if parsed.gpu else GPUS.values():
            basis = f"{parsed.utilization:.0%} of {gpu.tflops:g} TFLOP/s dense {gpu.note}"
            hours = result.gpu_seconds(gpu.tflops, parsed.utilization) / 3600
            rows.append({"on": f"one {gpu.name}", "hours": hours, "basis": basis})
    return rows


def _as_json(
    result: Estimate, rates: Rates, hours: list[dict[str, Any]], ranks: int, warnings: list[str]
) -> dict[str, Any]:
    memory = {f"zero_{stage}": {**states._asdict(), "total": states.total} for stage, states in result.memory.items()}
    return {
        **asdict(result),
        "memory": memory,
        "ranks": ranks,
        "tokens": result.tokens,
        "flops": result.flops,
        "cpu_seconds": result.cpu_seconds,
        "hours": hours,
        "seconds_basis": rates.seconds_basis,
        "shapes_basis": rates.shapes_basis,
        "warnings": warnings,
    }


def _show(
    whole: WholeRecipe, result: Estimate, rates: Rates, hours: list[dict[str, Any]], ranks: int, warnings: list[str]
) -> None:
    rows = [
        ["corpus", "", size_in_words(result.text_bytes), ""],
        ["documents", "", size_in_words(result.documents_bytes), in_words(result.documents_seconds)],
        [
            "vocabulary",
            f"{whole.vocabulary.size:,} entries",
            size_in_words(result.disk_bytes[VOCABULARY]),
            in_words(result.vocabulary_seconds),
        ],
    ]
    for cost in result.lengths:
        what = f"{_large(cost.rows)} rows of length {cost.label}, {_large(cost.tokens)} tokens"
        rows.append(["examples", what, size_in_words(cost.size_bytes), ""])
    rows.append(["examples", f"{whole.examples.passes} passes, all lengths", size_in_words(result.examples_bytes), ""])
    rows[-1][-1] = in_words(result.examples_seconds)
    disk = result.disk_bytes
    pretraining = (
        f"encoder of {_large(result.parameters)} parameters, checkpoints {size_in_words(result.checkpoints_bytes)}"
    )
    rows.append([PRETRAINING, pretraining, size_in_words(disk[PRETRAINING]), ""])
    if whole.finetuning.tasks:
        starts = (
            "from the encoder and from random weights" if whole.finetuning.compare_with_random else "from the encoder"
        )
        rows.append([FINETUNING, f"{len(whole.finetuning.tasks)} tasks, {starts}", size_in_words(disk[FINETUNING]), ""])
    rows.append([REGISTRY, "copies of the models in MLflow", size_in_words(disk[REGISTRY]), ""])
    rows.append(["together", "", size_in_words(sum(disk.values())), in_words(result.cpu_seconds)])
    print_table(["stage", "what", "disk", "time of a core"], rows)
    print(f"while a job runs, documents and examples need twice their disk{_free_disk(whole)}\n")
    about = "" if whole.pretraining.measure == "steps" else "about "
    rows = [
        [
            str(phase.max_seq_length),
            f"{about}{phase.steps:,}" if phase.steps else "?",
            _large(phase.sequences),
            _large(phase.tokens),
            f"{phase.row_epochs:.2f}",
            f"{phase.flops:.2e}",
        ]
        for phase in result.phases
    ]
    num_steps = sum(phase.steps for phase in result.phases)
    all_steps = f"{about}{num_steps:,}" if num_steps else "?"
    rows.append(["all", all_steps, "", _large(result.tokens), "", f"{result.flops:.2e}"])
    print_table(["length", "steps", "sequences", "tokens", "epochs of rows", "FLOPs"], rows, title="pre-training")
    print(f"the text itself is read {result.text_epochs:.1f} times\n")
    print_table(
        ["on", "time", "by"],
        [[row["on"], duration_in_words(row["hours"] * 3600), row["basis"]] for row in hours],
        title="time of pre-training on one device, without evaluation, checkpoints and a GPU's fixed cost of each step",
    )
    print()
    rows = [
        [
            f"{stage}{' (recipe)' if stage == whole.pretraining.zero_stage else ''}",
            *(size_in_words(part) for part in states),
            size_in_words(states.total),
        ]
        for stage, states in result.memory.items()
    ]
    title = f"memory of a rank, of {ranks}, without activations"
    print_table(["ZeRO", "weights", "gradients", "optimizer", "together"], rows, title=title)
    print(f"\nrates: {shown(rates.seconds_basis)}\nrows:  {shown(rates.shapes_basis)}")
    for warning in warnings:
        print(f"warning: {shown(warning)}")


def _free_disk(whole: WholeRecipe) -> str:
    """Free bytes on the disk of the workspace, in words; empty for object stores."""
    if not whole.is_local:
        return ""
    place = os.path.abspath(storage.local_path(whole.run.workspace))
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    return f"; {size_in_words(shutil.disk_usage(place).free)} are free in {shown(place)}"


def duration_in_words(seconds: float) -> str:
    """As `in_words`, but "under 1 s" for less than a second."""
    return "under 1 s" if seconds < 1 else in_words(seconds)


def size_in_words(size_bytes: float) -> str:
    """Bytes in powers of ten: `3.1 MB`, `16.0 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} TB"


def _large(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M")):
        if number >= limit:
            return f"{number / limit:,.2f} {unit}"
    return f"{number:,.0f}"


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
