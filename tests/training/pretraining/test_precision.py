"""`precision = "auto"` on a CPU: what is chosen is said, stored, and kept by a resumed run on another machine.

No processor with fast bfloat16 is at hand for each test, so the gain of its products is a stand-in; the training in
bfloat16 is real.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.support.training.trainer import Trainer

from pipelines.contract.manifest import read_manifest
from pipelines.statistics.training import PretrainingStatistics
from training.engine import precision
from training.engine.processes import Processes


@pytest.mark.usefixtures("one_thread")
def test_a_run_keeps_what_was_chosen_where_it_began(
    make_workspace: Callable[[str], Any],
    single_process: Processes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def processor(gain: float) -> None:
        monkeypatch.setattr(precision, "bf16_gain", lambda _: gain)

    monkeypatch.setattr(precision, "SMALLEST_HIDDEN_SIZE", 8)
    names = ("fast", "moved", "slow", "continued")
    trainers = {name: Trainer(make_workspace(name), single_process) for name in names}
    processor(12.0)
    assert trainers["fast"]() == 0
    assert "bf16 (its products are 12.0 times as fast as in fp32 on this CPU)" in capsys.readouterr().out
    assert trainers["moved"](stop_at=2) != 0
    # A phase of another length has other held-out examples.
    two_phases = "pretraining.phases=[{max_seq_length=32, steps=4, global_batch_size=8}, " + (
        "{max_seq_length=64, steps=2, global_batch_size=8}]"
    )
    assert trainers["continued"]() == 0
    processor(0.5)
    assert trainers["continued"](two_phases, continued="") == 0
    capsys.readouterr()
    assert trainers["moved"]() == 0
    assert "bf16 (that of the checkpoint)" in capsys.readouterr().out
    assert trainers["moved"].weights() == trainers["fast"].weights()
    assert trainers["slow"]() == 0
    assert trainers["slow"].weights() != trainers["fast"].weights()
    stated = {
        name: read_manifest(trainer.directory).statistics_as(PretrainingStatistics).precision
        for name, trainer in trainers.items()
    }
    assert stated == {name: "fp32" if name == "slow" else "bf16" for name in names}
