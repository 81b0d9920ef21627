"""The report, from manifests written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from tests.support.statistics import statistics_with

from flows.parameters.requests import RunRequest
from flows.parameters.whole_recipe import WholeRecipe
from flows.report import data_sections
from flows.report import files as report_files
from flows.report.facts import gather
from flows.report.manifest_facts import corpus_facts
from flows.running import timings
from flows.running.outcomes import FlowOutcome, RegisteredModel, StageOutcome, shown_seconds
from pipelines.contract import storage
from pipelines.contract.manifest import StageKey, write_manifest
from pipelines.contract.statistics import Statistics
from pipelines.statistics.preprocessing import (
    DocumentsStatistics,
    ExamplesStatistics,
    LengthStatistics,
    SetStatistics,
    SourceStatistics,
    VocabularyStatistics,
)
from pipelines.statistics.training import TrialStatistics

STATISTICS: dict[str, Statistics | dict[str, Any]] = {
    "documents": statistics_with(DocumentsStatistics, documents_read=1200, documents_kept=1100, heldout_documents=90),
    "vocabulary": statistics_with(VocabularyStatistics, size=8192, distinct_words=43_210),
    "examples": statistics_with(
        ExamplesStatistics,
        lengths={
            "128": statistics_with(LengthStatistics, examples=900, tokens=90_000),
            "512": statistics_with(LengthStatistics, examples=100, tokens=10_000),
        },
    ),
    "pretraining": {
        "heldout_before": {"mlm_accuracy": 0.0001, "nsp_accuracy": 0.5},
        "heldout_after": {"mlm_accuracy": 0.2468, "nsp_accuracy": 0.625},
        "steps": 300,
        "parameters": 1_500_000,
    },
    "cola/pretrained": statistics_with(
        TrialStatistics, metric="mcc", score=0.321, majority_baseline=0.0, dev_rows=1043
    ),
    "cola/random": statistics_with(TrialStatistics, metric="mcc", score=0.012),
}


@pytest.fixture
def whole(write_recipe: Callable[..., str]) -> WholeRecipe:
    return RunRequest(recipe=write_recipe()).read()


def outcome_of(whole: WholeRecipe, statistics: Mapping[str, Statistics | dict[str, Any]]) -> FlowOutcome:
    directories = {}
    for name, values in statistics.items():
        directories[name] = storage.join(whole.run.workspace, name)
        write_manifest(directories[name], StageKey(name, 1, {}, {}).manifest([], values, "0"))
    stages = tuple(
        StageOutcome(
            stage=name,
            built=name != "documents",
            seconds=41.2,
            mlflow_run_id="1",
            directories={name: directories[name]},
        )
        for name in statistics
    )
    model = RegisteredModel(name="trial-cola", version="3", alias="champion", new=True)
    return FlowOutcome(stages=stages, models=(model,))


def written(whole: WholeRecipe, outcome: FlowOutcome) -> tuple[dict[str, Any], str, str]:
    facts = gather(whole, outcome, "sqlite:////ws dir/mlflow.db", "/ws dir/prefect")
    report_files.write_report(whole, facts)
    screen = StringIO()
    report_files.show(facts, Console(file=screen, width=100, highlight=False))
    page = storage.read_bytes(storage.join(whole.run.workspace, "report.md")).decode()
    return json.loads(storage.read_bytes(storage.join(whole.run.workspace, "report.json"))), page, screen.getvalue()


def test_the_report_tells_what_was_read_and_reached(whole: WholeRecipe) -> None:
    facts, page, screen = written(whole, outcome_of(whole, STATISTICS))
    assert facts["corpus"]["examples"] == 1000
    assert facts["corpus"]["example_tokens"] == 100_000
    assert facts["tasks"] == [
        {
            "task": "cola",
            "metric": "mcc",
            "pretrained": 0.321,
            "random": 0.012,
            "majority_baseline": 0.0,
            "train_rows": None,
            "dev_rows": 1043,
            "in_recipe": True,
        }
    ]
    assert facts["models"][0]["uri"] == "models:/trial-cola@champion"
    for text in (page, screen):
        assert "1,100 of 1,200 read" in text
        assert "0.000 -> 0.247" in text
        assert "0.500 -> 0.625" in text
        assert "0.321 pre-trained, 0.012 from random weights, 0.000 majority" in text
        assert "skipped (took 41 s before)" in text
        assert "models:/trial-cola@champion" in text
        assert "/mlflow server --backend-store-uri 'sqlite:////ws dir/mlflow.db' --host 127.0.0.1" in text
        assert re.search(r"PREFECT_HOME='/ws dir/prefect' \S*/prefect server start --host 127\.0\.0\.1", text)
    assert screen.splitlines()[-1] == f"report   file://{whole.run.workspace}/report.html"


def test_what_was_not_compared_and_not_timed_is_not_shown(whole: WholeRecipe) -> None:
    pretrained = {name: values for name, values in STATISTICS.items() if not name.endswith("/random")}
    outcome = outcome_of(whole, pretrained)
    untimed = tuple(stage.model_copy(update={"seconds": None}) for stage in outcome.stages)
    _, page, screen = written(whole, outcome.model_copy(update={"stages": untimed}))
    for text in (page, screen):
        assert "0.321 pre-trained, 0.000 majority" in text
        assert "skipped" in text
        assert "took" not in text


def test_what_a_manifest_does_not_tell_is_shown_as_unknown(whole: WholeRecipe) -> None:
    facts, page, screen = written(whole, outcome_of(whole, {name: {} for name in STATISTICS}))
    assert facts["corpus"]["documents_read"] is None
    missing = [(each["stage"], each["text"].partition(": ")[2].partition(";")[0]) for each in facts["warnings"]]
    assert missing == [
        ("documents", "statistics.documents_read is missing"),
        ("vocabulary", "statistics.words is missing"),
        ("examples", "statistics.lengths is missing"),
    ]
    assert "statistics.task is missing" in facts["tasks"][0]["problem"]
    for text in (page, screen):
        assert "- of - read" in text
        assert "- -> -" in text
        assert "- pre-trained, - from random weights, - majority" in text


def test_seconds_belong_to_what_was_built(whole: WholeRecipe) -> None:
    workspace = whole.run.workspace
    manifests = {"vocabulary": StageKey("vocabulary", 1, {}, {}).manifest([], {}, "0")}
    rebuilt = {"vocabulary": StageKey("vocabulary 2", 1, {}, {}).manifest([], {}, "0")}
    assert timings.earlier_seconds(workspace, "vocabulary", manifests) is None
    timings.record_seconds(workspace, "vocabulary", manifests, 12.345)
    timings.record_seconds(workspace, "examples", manifests, 1.0)
    assert timings.earlier_seconds(workspace, "vocabulary", manifests) == pytest.approx(12.345, abs=0.01)
    assert timings.earlier_seconds(workspace, "vocabulary", rebuilt) is None


def test_durations_for_people() -> None:
    shown = [shown_seconds(seconds) for seconds in (4.21, 41.4, 723, 18_720)]
    assert shown == ["4.2 s", "41 s", "12 min 3 s", "5 h 12 min"]


def test_sources_and_sets_of_examples_are_shown() -> None:
    facts = {"train_documents": 40, "tokens_read": 900, "asked_share": 0.5, "share": 0.4957}
    length = statistics_with(LengthStatistics, examples=70, tokens=900)
    sources = {
        "wiki": SourceStatistics(train_tokens=1_800, reads_per_pass=0.5, **facts),
        "law": SourceStatistics(train_tokens=90, reads_per_pass=10.17, **facts),
    }
    statistics = statistics_with(
        ExamplesStatistics,
        lengths={"512": length, "128": length},
        sources=sources,
        sets={"expert": statistics_with(SetStatistics, lengths={"64": length}, sources={"law": sources["law"]})},
    )
    found, problems = corpus_facts({"examples": StageKey("examples", 1, {}, {}).manifest([], statistics, "test")})
    assert not problems
    section = data_sections.examples({"corpus": found.model_dump(), "examples": {}})
    shown = " ".join(re.sub("<[^>]*>", " ", section).split())
    assert "examples law 40 90 10.17 50.0 % 49.6 % expert law 40 90 10.17" in shown
    assert re.findall(r"(\S+) 70 900 ", shown) == ["128", "512", "expert/64"]
