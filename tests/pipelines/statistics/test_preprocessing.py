"""Typed statistics: they read what the jobs write, byte by byte, and say in one line what a manifest lacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.statistics import statistics_with

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey, read_manifest, write_manifest
from pipelines.contract.statistics import Statistics
from pipelines.examples.losses import LOSSES
from pipelines.examples.statistics import COUNTS
from pipelines.statistics.preprocessing import (
    DocumentsStatistics,
    ExamplesStatistics,
    LengthStatistics,
    VocabularyStatistics,
)
from pipelines.statistics.training import TrialStatistics

MODELS: dict[str, type[Statistics]] = {
    "documents": DocumentsStatistics,
    "vocabulary": VocabularyStatistics,
    "examples": ExamplesStatistics,
}


def manifest_in(directory: Path, statistics: dict[str, Any]) -> Manifest:
    write_manifest(str(directory), StageKey("vocabulary", 1, {}, {}).manifest([], statistics, "1"))
    manifest = read_manifest(str(directory))
    assert manifest is not None
    return manifest


@pytest.mark.parametrize("stage", MODELS)
def test_a_model_reads_and_writes_what_the_job_has_written(built: tuple[Path, str], stage: str) -> None:
    manifest = read_manifest(str(built[0] / stage))
    assert manifest is not None
    statistics = manifest.statistics_as(MODELS[stage])
    written = StageKey(stage, 1, {}, {}).manifest([], statistics, "1").statistics
    assert json.dumps(written, sort_keys=True) == json.dumps(manifest.statistics, sort_keys=True)


def test_values_are_attributes(built: tuple[Path, str]) -> None:
    manifest = read_manifest(str(built[0] / "examples"))
    assert manifest is not None
    statistics = manifest.statistics_as(ExamplesStatistics)
    assert list(statistics.lengths) == ["32", "64"]
    of_32 = statistics.of_length(32)
    assert of_32 is not None
    assert statistics.of_length(128) is None
    assert of_32.examples == sum(split.examples for split in of_32.splits.values()) > 0
    assert of_32.tokens == sum(file.statistics["tokens"] for file in manifest.files if "length32/" in file.name)
    assert {*COUNTS, *LOSSES} <= set(LengthStatistics.model_fields)


def test_what_is_missing_is_one_line_that_names_the_manifest(tmp_path: Path) -> None:
    statistics = statistics_with(VocabularyStatistics, size=100).to_json()
    del statistics["distinct_words"]
    with pytest.raises(InputError) as caught:
        manifest_in(tmp_path, statistics).statistics_as(VocabularyStatistics)
    assert str(caught.value) == (
        f"{tmp_path}/manifest.json: statistics.distinct_words is missing; another version wrote it, or it was edited: "
        "restore it from a copy, or build the stage again with --restart"
    )


def test_a_nested_value_of_another_type_is_named(tmp_path: Path) -> None:
    examples = statistics_with(ExamplesStatistics, lengths={"32": statistics_with(LengthStatistics)}).to_json()
    examples["lengths"]["32"]["tokens"] = "many"
    with pytest.raises(InputError, match=r"manifest\.json: statistics\.lengths\.32\.tokens: .* valid integer; another"):
        manifest_in(tmp_path, examples).statistics_as(ExamplesStatistics)


def test_what_another_version_added_is_ignored(tmp_path: Path) -> None:
    statistics = statistics_with(VocabularyStatistics, size=100)
    manifest = manifest_in(tmp_path, statistics.to_json() | {"from_later": [1]})
    assert manifest.statistics_as(VocabularyStatistics) == statistics
    assert manifest.statistics["from_later"] == [1]


def test_a_trial_keeps_metrics_of_its_own_and_leaves_out_what_its_family_does_not_state() -> None:
    own = {"f1": 0.8, "HasAns_f1": 0.9, "null_threshold": -1.5}
    squad = statistics_with(TrialStatistics, metric="f1", score=0.8, dev=own, dev_questions=7, **own)
    assert own.items() <= squad.to_json().items()
    assert not {"dev_rows", "majority_baseline", "mismatched"} & squad.to_json().keys()
    assert (squad.num_dev_rows, squad.chance, squad.null_threshold) == (7, 0.0, -1.5)
    glue = statistics_with(TrialStatistics, dev_rows=9, majority_baseline=0.5, constant_baseline=0.7)
    assert (glue.num_dev_rows, glue.chance, glue.null_threshold) == (9, 0.7, None)


def test_manifests_are_equal_wherever_they_are_stored(tmp_path: Path) -> None:
    first, second = (manifest_in(tmp_path / name, {"size": 1}) for name in ("first", "second"))
    assert first == second
    assert first != manifest_in(tmp_path / "third", {"size": 2})
