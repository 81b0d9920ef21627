"""A run from an initial encoder that was continued later states both, in the order in which they were taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.training.trainer import Trainer

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from pipelines.statistics.training import PretrainingStatistics
from training.engine.processes import Processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_initial_encoder_and_checkpoint_are_both_stated(
    make_workspace: Callable[[str], Any], single_process: Processes
) -> None:
    source, train = Trainer(make_workspace("source"), single_process), Trainer(make_workspace("own"), single_process)
    assert source() == 0
    initial = f"pretraining.initial_encoder={json.dumps(source.workspace.path)}"
    assert train(initial) == 0
    longer = "pretraining.phases.0.steps=6"
    with pytest.raises(InputError, match=r"cannot be continued by this recipe: input initial_encoder changed"):
        train(longer, continued="")
    assert train(initial, longer, continued="") == 0
    # A second continuation states the first as well.
    assert train(initial, "pretraining.phases.0.steps=7", continued="") == 0
    manifest = read_manifest(train.directory)
    assert manifest is not None
    lineage = manifest.statistics_as(PretrainingStatistics).lineage
    assert [(record.relation, record.step) for record in lineage] == [
        ("initial_encoder", None),
        ("checkpoint", 4),
        ("checkpoint", 6),
    ]
    assert lineage[1].differences == ["pretraining.phases.0.steps was 4, is 6"]
    assert lineage[0].source == source.workspace.path
