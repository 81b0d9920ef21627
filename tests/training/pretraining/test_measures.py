"""Runs by epochs, tokens and hours, and with a batch that grows: where they end, resumed, and on two ranks."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support import SUPPORT
from tests.support.training.trainer import Trainer

from pipelines.contract.errors import InputError
from pipelines.contract.manifest import read_manifest
from training.engine.processes import Processes
from training.pretraining import run as pretraining
from training.pretraining.run import EXIT_INTERRUPTED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = str(SUPPORT / "training" / "pretrain_in_turn.py")
NO_STEPS = "pretraining.num_warmup_steps=10000"
KEPT = "pretraining.keep_checkpoints=99"
EACH_STEP = "pretraining.checkpoint_every_steps=1"
LOGGED = "pretraining.log_every_steps=1"
WITHOUT_DROPOUT = ["model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0"]
GROWING = (
    "pretraining.phases=[{max_seq_length=32, tokens=1500, global_batch_size=12, batch_warmup={start=3, steps=5}}, "
    "{max_seq_length=64, tokens=700, global_batch_size=4}]"
)
BY_TOKENS = (GROWING, NO_STEPS, EACH_STEP, "pretraining.warmup_proportion=0.25", KEPT, LOGGED, *WITHOUT_DROPOUT)
TOLERANCE = 1e-5
"""Of losses on another number of ranks; sums of floats in another order differ by about 1e-6 here."""


def of_step(trainer: Trainer) -> list[dict[str, Any]]:
    """Progress after each step, from the checkpoints, after a start with nothing done."""
    found = [dict.fromkeys(("step", "phase", "position", "tokens", "sequences"), 0)]
    for directory in sorted(Path(trainer.directory, "checkpoints").glob("step-*")):
        manifest = read_manifest(str(directory))
        assert manifest is not None
        found.append(manifest.statistics)
    return found


def lines(trainer: Trainer) -> list[dict[str, float]]:
    return [line for line in trainer.workspace.metrics() if "learning_rate" in line]


def test_a_run_by_tokens_ends_where_they_are_reached_and_resumes_there(
    make_workspace: Callable[[str], Any], single_process: Processes
) -> None:
    whole, parts = (Trainer(make_workspace(name), single_process) for name in ("tokens", "parts"))
    assert whole(*BY_TOKENS) == 0
    states = of_step(whole)
    sizes = [after["sequences"] - before["sequences"] for before, after in itertools.pairwise(states)]
    first_of_phase_1 = next(index for index, state in enumerate(states) if state["phase"] == 1)
    assert states[first_of_phase_1]["tokens"] >= 1500 > states[first_of_phase_1 - 1]["tokens"]
    assert states[-1]["tokens"] >= 2200 > states[-2]["tokens"]
    assert sizes[:first_of_phase_1] == [3, 4, 6, 8, 10, *[12] * (first_of_phase_1 - 5)]
    assert set(sizes[first_of_phase_1:]) == {4}
    # The rate is a function of the tokens before the step.
    for state, line in zip(states, lines(whole), strict=False):
        share = state["tokens"] / 2200
        assert line["learning_rate"] == pytest.approx(1e-3 * (share / 0.25 if share < 0.25 else 1.0 - share))
    for step in (2, 6):
        assert parts(*BY_TOKENS, stop_at=step) == EXIT_INTERRUPTED
    assert parts(*BY_TOKENS) == 0
    assert parts.weights() == whole.weights()
    assert of_step(parts)[-1]["tokens"] == states[-1]["tokens"]
    with pytest.raises(InputError, match=r"by tokens, those of the recipe by steps; --continue shares the schedule of"):
        whole(continued="")


def test_a_run_by_epochs_reads_that_many_rows(
    make_workspace: Callable[[str], Any], single_process: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(make_workspace("epochs"), single_process)
    phases = "pretraining.phases=[{max_seq_length=32, epochs=0.11, global_batch_size=8}]"
    assert trainer(phases, NO_STEPS, KEPT, LOGGED) == 0
    # 44 of 400 rows: the sixth step reads 4 more.
    assert [state["sequences"] for state in of_step(trainer)] == [0, 8, 16, 24, 32, 40, 48]
    assert [line["learning_rate"] for line in lines(trainer)] == pytest.approx(
        [0.0, *(1e-3 * (1 - rows / 44) for rows in (8, 16, 24, 32, 40))]
    )
    assert "step 1 (18.2 % of 0.11 epochs): loss" in capsys.readouterr().out


def test_a_run_by_hours_ends_by_the_clock(
    make_workspace: Callable[[str], Any], single_process: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that shows another second at each look: two for a step, as one looks before and after it."""
    trainer = Trainer(make_workspace("hours"), single_process)
    ticks = itertools.count()

    class Clocked(pretraining.TrainingRun):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._clock = lambda: float(next(ticks))

    monkeypatch.setattr("tests.support.training.trainer.TrainingRun", Clocked)
    phases = f"pretraining.phases=[{{max_seq_length=32, hours={8 / 3600}, global_batch_size=8}}]"
    settings = (phases, NO_STEPS, KEPT, LOGGED)
    assert trainer(*settings, stop_at=3) == EXIT_INTERRUPTED
    next(ticks)  # time between both runs does not count
    assert trainer(*settings) == 0
    manifest = read_manifest(trainer.directory)
    assert manifest is not None
    assert manifest.statistics["steps"] == 8
    assert [line["learning_rate"] for line in lines(trainer)] == pytest.approx(
        [0.0, *(1e-3 * (1 - second / 8) for second in range(1, 8))]
    )


def test_the_number_of_ranks_changes_nothing(make_workspace: Callable[[str], Any], single_process: Processes) -> None:
    """And two ranks agree in the end of a run by hours, which each would see at another moment."""
    alone, two, hours = (Trainer(make_workspace(name), single_process) for name in ("alone", "two", "by-hours"))
    command: list[str] = [sys.executable, SCRIPT]
    by_hours = "pretraining.phases=[{max_seq_length=32, hours=0.0001, global_batch_size=8}]"
    for trainer, settings in ((two, (*BY_TOKENS, "pretraining.micro_batch_size=2")), (hours, (by_hours, NO_STEPS))):
        command += [trainer.workspace.recipe, "--workspace", trainer.workspace.path]
        command += [argument for setting in settings for argument in ("--set", setting)] + ["--"]
    processes = two.workspace.start_ranks(command[:-1], 2)
    try:
        assert alone(*BY_TOKENS) == 0
        outputs = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert not [line for line in outputs[0].splitlines() if line.startswith("error")]
    keys = ("step", "phase", "phase_step", "position", "tokens", "sequences")
    positions = [[[state.get(key, 0) for key in keys] for state in of_step(each)] for each in (alone, two)]
    assert positions[0] == positions[1]
    expected, found = alone.workspace.losses(), two.workspace.losses()
    assert found.keys() == expected.keys()
    assert max(abs(found[step] - expected[step]) for step in expected) < TOLERANCE
    manifest = read_manifest(hours.directory)
    assert manifest is not None
    assert manifest.statistics["steps"] >= 1


def test_a_first_step_without_rows_for_all_ranks_is_refused(
    make_workspace: Callable[[str], Any], single_process: Processes
) -> None:
    trainer = Trainer(make_workspace("ranks"), dataclasses.replace(single_process, world_size=4))
    with pytest.raises(InputError, match=r"batch_warmup\.start = 3 is too small for 4 ranks; raise it"):
        trainer(*BY_TOKENS)
    assert not list(Path(trainer.workspace.path).glob("pretraining*"))
