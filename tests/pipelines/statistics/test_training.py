"""What readers of a training manifest get, also from releases that stated less."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest, StageKey
from pipelines.statistics.metrics import BERT_METRICS, MASKED_LM_METRICS, Metric
from pipelines.statistics.training import DistillationStatistics, Lineage, PretrainingStatistics


def manifest_of(statistics: dict[str, Any]) -> Manifest:
    return StageKey("pretraining", 1, {}, {}).manifest([], statistics, "0")


def test_a_manifest_without_metrics_is_read_as_bert() -> None:
    scores = {"mlm_accuracy": 0.25, "mlm_perplexity": 9.0, "mlm_loss": 2.2, "loss": 2.2}
    found = manifest_of({"heldout_after": scores, "unknown": 1}).statistics_as(PretrainingStatistics)
    assert (found.metrics, found.judged_by.name) == (BERT_METRICS, "mlm_accuracy")
    assert found.heldout_metrics == MASKED_LM_METRICS
    assert (found.heldout, found.heldout_before, found.steps) == (scores, {}, None)
    assert manifest_of({}).statistics_as(PretrainingStatistics).heldout_metrics == BERT_METRICS


def test_metrics_are_those_that_the_manifest_states() -> None:
    metric = Metric("surprise", "surprise", "number")
    statistics = {"metrics": [asdict(metric)], "student": {"heldout": {"surprise": 3}}, "steps": 7}
    found = manifest_of(statistics).statistics_as(DistillationStatistics)
    assert (found.metrics, found.heldout, found.steps) == ((metric,), {"surprise": 3.0}, 7)


def test_wrong_statistics_give_one_line() -> None:
    with pytest.raises(InputError, match=r"manifest of stage pretraining: statistics\.heldout_after\.loss") as caught:
        manifest_of({"heldout_after": {"loss": "low"}}).statistics_as(PretrainingStatistics)
    assert "\n" not in str(caught.value)


def test_lineage_is_stored_as_it_was_set_and_read_in_words() -> None:
    first = Lineage(
        relation="initial_encoder", source="bert", digest="0123456789abcdef", initialized=["masked-LM head"],
        extended={"positions": 1_024}, dropped=["classifier"],
    )  # fmt: skip
    second = Lineage(relation="checkpoint", source="workspaces/a", digest="fedcba9876543210", step=9_000)
    stored = json.loads(json.dumps({"lineage": [first.to_json(), second.to_json()]}))
    assert "step" not in stored["lineage"][0]
    found = manifest_of(stored).statistics_as(PretrainingStatistics).lineage
    assert found == (first, second)
    assert found[0].in_words() == (
        "initial encoder bert (digest 0123456789ab), masked-LM head initialized, 1,024 positions added, "
        "classifier not used"
    )
    assert found[1].in_words() == "checkpoint workspaces/a of step 9,000 (digest fedcba987654)"
    assert manifest_of({}).statistics_as(PretrainingStatistics).lineage == ()
