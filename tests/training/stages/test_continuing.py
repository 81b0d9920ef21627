"""Which checkpoint of a finished run other settings can share, and where they continue: pure functions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.optimizers.schedule import Schedule
from training.settings.pretraining import PretrainingConfig
from training.stages.continuing import Place, place_of_checkpoint, steps_of_equal_rate

KINDS = ("linear", "cosine", "warmup_stable_decay")


def config(*steps: int, **settings: Any) -> PretrainingConfig:
    phases = [
        {"max_seq_length": 32 << index, "steps": each, "global_batch_size": 8} for index, each in enumerate(steps)
    ]
    return PretrainingConfig.model_validate({"phases": phases, "num_warmup_steps": 2, **settings})


def progress(step: int, phase: int, phase_step: int, position: int, **more: Any) -> dict[str, Any]:
    health = {"rollbacks": 0}
    return {"step": step, "phase": phase, "phase_step": phase_step, "position": position, "health": health, **more}


OLD = config(20, 10)
LONG_ONLY = OLD.model_copy(update={"phases": OLD.phases[1:]})
WSD = config(30, schedule="warmup_stable_decay")
AT_15, AT_20, AT_30 = progress(15, 0, 15, 120), progress(20, 1, 0, 0), progress(30, 2, 0, 0)


@pytest.mark.parametrize(
    ("old", "new", "at", "place"),
    [
        # More steps of the last phase, with the position at its end recorded, derived, or unknown.
        (OLD, config(20, 50), {**AT_30, "phase_end": 88}, Place(30, 1, 10, 88)),
        (OLD, config(20, 50), AT_30, Place(30, 1, 10, 80)),
        (OLD, config(20, 50), {**AT_30, "health": {"rollbacks": 1}}, "position in the data of phase 1 is not recorded"),
        (OLD, config(20, 10, 5), AT_30, Place(30, 2, 0, 0)),
        (OLD, config(20, 10, learning_rate=1e-3), AT_15, Place(15, 0, 15, 120)),
        (OLD, config(20, 10, learning_rate=1e-3), AT_30, "30 steps, so nothing is left"),
        # Phases before the checkpoint cannot change; that of the checkpoint can end at it, or later.
        (OLD, config(25, 50), progress(25, 1, 5, 40), "phase 0 had 20 steps, has 25"),
        (OLD, config(25, 50), AT_20, Place(20, 0, 20, 160)),
        (OLD, config(15, 50), AT_15, Place(15, 1, 0, 0)),
        (OLD, config(12, 50), AT_15, "phase 0 had 20 steps, has 12"),
        (config(0x20), config(20, 15), progress(32, 1, 0, 0), "phase 0 had 32 steps, has 20"),
        (OLD, config(40), progress(25, 1, 5, 40), "phase 0 had 20 steps, has 40"),
        (config(5, 5), LONG_ONLY, progress(4, 0, 4, 32), "phase 0 had max_seq_length 32, has 64"),
        # The decay begins at step 27 of 30.
        (WSD, config(60, schedule="warmup_stable_decay"), progress(27, 0, 27, 216), Place(27, 0, 27, 216)),
        (WSD, config(60, schedule="warmup_stable_decay"), progress(28, 0, 28, 224), "the rate decays from step 27"),
        (WSD, config(60), progress(28, 0, 28, 224), "the rate decays from step 27"),
        (WSD, WSD.model_copy(update={"masking": "dynamic"}), progress(28, 0, 28, 224), Place(28, 0, 28, 224)),
    ],
)  # fmt: skip
def test_the_place_where_a_recipe_continues(
    old: PretrainingConfig, new: PretrainingConfig, at: dict[str, Any], place: Place | str
) -> None:
    found = place_of_checkpoint(old, new, at, is_same_order=True)
    if isinstance(place, str):
        assert isinstance(found, str)
        assert place in found
    else:
        assert found == place


def test_other_rows_start_from_their_beginning() -> None:
    new = config(20, 50)
    phases = (new.phases[0], new.phases[1].model_copy(update={"examples": "domain"}))
    other_set = new.model_copy(update={"phases": phases})
    assert place_of_checkpoint(OLD, other_set, AT_30, is_same_order=True) == Place(30, 1, 10, 0)
    assert place_of_checkpoint(OLD, other_set, AT_15, is_same_order=True) == Place(15, 0, 15, 120)
    assert place_of_checkpoint(OLD, new, AT_30, is_same_order=False) == Place(30, 1, 10, 0)
    assert place_of_checkpoint(OLD, new, AT_20, is_same_order=False) == Place(20, 1, 0, 0)


@given(
    st.sampled_from(KINDS), st.sampled_from(KINDS), st.integers(3, 40), st.integers(3, 40), st.integers(0, 2),
    st.integers(0, 2), st.sampled_from([1e-3, 2e-3]), st.none() | st.integers(1, 2),
)  # fmt: skip
def test_rates_are_equal_in_the_steps_that_are_counted(
    one: str,
    other: str,
    old_steps: int,
    new_steps: int,
    old_warmup: int,
    new_warmup: int,
    rate: float,
    decay: int | None,
) -> None:
    def settings(kind: str, steps: int, warmup: int, rate: float) -> PretrainingConfig:
        fits = kind == "warmup_stable_decay" and decay is not None and warmup + decay <= steps
        more = {"num_decay_steps": decay} if fits else {}
        return config(steps, schedule=kind, num_warmup_steps=warmup, learning_rate=rate, **more)

    old, new = settings(one, old_steps, old_warmup, 1e-3), settings(other, new_steps, new_warmup, rate)
    counted = steps_of_equal_rate(old, new)
    first, second = Schedule.of(old), Schedule.of(new)
    assert counted <= min(old_steps, new_steps)
    assert [first.rate_at(step) for step in range(counted)] == [second.rate_at(step) for step in range(counted)]
    if (one, old_warmup, 1e-3) == (other, new_warmup, rate) and one == "warmup_stable_decay":
        stable = next((step for step in range(old_warmup, old_steps) if first.rate_at(step) != 1e-3), old_steps)
        assert counted >= min(stable - 1, new.decay_start_step or 0)
