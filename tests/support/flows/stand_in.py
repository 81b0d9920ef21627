"""A stage's command without its work: writes what the manifest needs, as the real ones do, and the manifest last."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # it runs as a script

from tests.support.statistics import statistics_with

from pipelines.commands.lifeline import follow_lifeline
from pipelines.commands.recipe_arguments import add_recipe_arguments, add_restart_argument, recipe_from_arguments
from pipelines.contract import storage
from pipelines.contract.errors import exit_code_of
from pipelines.contract.manifest import StageKey, read_manifest, record_of, write_manifest
from pipelines.contract.recipe import Recipe
from pipelines.contract.statistics import Statistics
from pipelines.results.builds import discard_build, install_build, open_build
from pipelines.results.marks import building_directory
from pipelines.statistics.preprocessing import (
    DocumentsStatistics,
    ExamplesStatistics,
    LengthStatistics,
    VocabularyStatistics,
)
from pipelines.statistics.training import TrialStatistics

ORDER = ("documents", "vocabulary", "examples", "pretraining", "cola/pretrained", "cola/random")
SECTIONS = ("documents", "vocabulary", "examples", "pretraining", "finetuning", "finetuning")
STATISTICS: dict[str, Statistics | dict[str, Any]] = {
    "documents": statistics_with(
        DocumentsStatistics, documents_read=12, documents_kept=10, documents_rejected=2, heldout_documents=1
    ),
    "vocabulary": statistics_with(VocabularyStatistics, size=100, distinct_words=321),
    "examples": statistics_with(
        ExamplesStatistics, lengths={"32": statistics_with(LengthStatistics, examples=40, tokens=1200)}
    ),
    "pretraining": {
        "heldout_before": {"mlm_accuracy": 0.01, "nsp_accuracy": 0.5},
        "heldout_after": {"mlm_accuracy": 0.25, "nsp_accuracy": 0.75},
        "steps": 3,
        "parameters": 12345,
    },
    "cola/pretrained": statistics_with(TrialStatistics, metric="mcc", score=0.5, majority_baseline=0.0),
    "cola/random": statistics_with(TrialStatistics, metric="mcc", score=0.125, majority_baseline=0.0),
}


def directory_of(recipe: Recipe, output: str) -> str:
    workspace = recipe.tables["run"]["workspace"]
    return storage.join(workspace, "finetuning", output) if "/" in output else storage.join(workspace, output)


def key_of(recipe: Recipe, output: str) -> StageKey:
    """Key of an output: its section of the recipe, and the digest of the previous output."""
    index = ORDER.index(output)
    before = ORDER[min(index, 4) - 1] if index else None
    manifest = read_manifest(directory_of(recipe, before)) if before else None
    inputs = {before: manifest.digest if manifest else ""} if before else {}
    return StageKey(output, 1, recipe.tables.get(SECTIONS[index], {}), inputs)


def build(recipe: Recipe, output: str) -> None:
    result_directory, key = directory_of(recipe, output), key_of(recipe, output)
    discard_build(result_directory)
    open_build(result_directory, key)
    directory = building_directory(result_directory)
    storage.write_bytes(storage.join(directory, "data.txt"), repr((key.config, key.inputs)).encode())
    files = [record_of(directory, "data.txt", rows=1)]
    if model := {"pretraining": "encoder", "cola/pretrained": "model"}.get(output):
        from tests.support.training.tiny_models import write_tiny_classifier, write_tiny_encoder

        write = write_tiny_encoder if model == "encoder" else write_tiny_classifier
        write(storage.join(directory, model))
        names = [f"{model}/{name}" for name in storage.list_files(storage.join(directory, model))]
        files += [record_of(directory, name, rows=0) for name in names]
    write_manifest(directory, key.manifest(files, STATISTICS[output], "0"))
    install_build(result_directory, key)


def main() -> None:
    follow_lifeline()
    parser = argparse.ArgumentParser()
    parser.add_argument("outputs")
    add_recipe_arguments(parser)
    add_restart_argument(parser, "build anew")
    arguments = parser.parse_args()
    recipe = recipe_from_arguments(arguments)
    print(f"run {os.environ['MLFLOW_RUN_ID']} has {len(recipe.overrides)} overrides")
    if os.environ.get("STAND_IN_HANGS") == arguments.outputs:
        print("hanging", flush=True)
        time.sleep(600)
    if os.environ.get("STAND_IN_WAITS") == arguments.outputs:
        # Reports its progress until the file is written.
        for second in itertools.count(1):
            if os.path.exists(os.environ["STAND_IN_WAITS_FOR"]):
                break
            print(f"{arguments.outputs}: step {second}/1,000: waiting", flush=True)
            time.sleep(0.5)
    marker = os.environ.get("STAND_IN_FAILS_UNTIL")
    if marker and not os.path.exists(marker):
        storage.write_bytes(marker, b"failed once")
        raise RuntimeError("asked to fail once")
    if os.environ.get("STAND_IN_FAILS") == arguments.outputs:
        raise RuntimeError("asked to fail")
    for output in arguments.outputs.split(","):
        build(recipe, output)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
