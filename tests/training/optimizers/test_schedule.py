"""The learning rate at points that can be worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from training.optimizers.schedule import Schedule
from training.settings.optimization import ScheduleKind
from training.settings.pretraining import PhaseConfig, PretrainingConfig

PEAK, WARMUP, STEPS = 1e-4, 10, 1000


def rates(kind: ScheduleKind, *steps: int, num_decay_steps: int | None = None) -> list[float]:
    """Rates in units of the peak."""
    schedule = Schedule(PEAK, WARMUP, STEPS, kind, num_decay_steps)
    return [schedule.rate_at(step) / PEAK for step in steps]


@pytest.mark.parametrize("kind", ["linear", "cosine", "warmup_stable_decay"])
def test_all_rise_from_zero_and_end_at_zero(kind: ScheduleKind) -> None:
    assert rates(kind, 0, 1, 5, 9) == pytest.approx([0.0, 0.1, 0.5, 0.9])
    assert rates(kind, STEPS, 2 * STEPS) == pytest.approx([0.0, 0.0])
    assert Schedule(PEAK, 0, STEPS, kind).rate_at(0) == pytest.approx(PEAK)


def test_linear_decays_from_step_zero() -> None:
    # The rate drops by a hundredth where warm-up ends: the decay has counted from step 0 (released code).
    assert rates("linear", 10, 500, 999) == pytest.approx([0.99, 0.5, 0.001])
    assert Schedule(PEAK, WARMUP, STEPS).rate_at(500) == pytest.approx(0.5 * PEAK)


def test_cosine_is_half_a_wave_after_warm_up() -> None:
    assert rates("cosine", 10, 505) == pytest.approx([1.0, 0.5])
    # A third of the wave: (1 + cos 60 degrees) / 2; two thirds: (1 + cos 120 degrees) / 2.
    assert rates("cosine", 340, 670) == pytest.approx([0.75, 0.25])


def test_stable_stays_at_the_peak_until_the_decay() -> None:
    assert rates("warmup_stable_decay", 10, 500, 900, 950, 990) == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.1])
    found = rates("warmup_stable_decay", 600, 800, 999, num_decay_steps=400)
    assert found == pytest.approx([1.0, 0.5, 1 / 400])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["linear", "cosine", "warmup_stable_decay"]),
    num_train_steps=st.integers(1, 400),
    data=st.data(),
)
def test_it_rises_and_then_never_rises_again(kind: ScheduleKind, num_train_steps: int, data: st.DataObject) -> None:
    num_warmup_steps = data.draw(st.integers(0, num_train_steps - 1))
    schedule = Schedule(1.0, num_warmup_steps, num_train_steps, kind)
    found = [schedule.rate_at(step) for step in range(num_train_steps + 1)]
    assert all(0.0 <= rate <= 1.0 for rate in found)
    assert found[:num_warmup_steps] == sorted(found[:num_warmup_steps])
    assert found[num_warmup_steps:] == sorted(found[num_warmup_steps:], reverse=True)
    assert found[-1] == pytest.approx(0.0, abs=1e-12)


def test_one_schedule_spans_the_phases_and_settings_that_contradict_it_are_refused() -> None:
    phases = (PhaseConfig(max_seq_length=128, steps=90), PhaseConfig(max_seq_length=512, steps=10))
    assert PretrainingConfig(phases=phases, num_warmup_steps=5).num_train_steps == 100
    with pytest.raises(ValidationError, match="num_decay_steps = 5 with schedule = 'linear'"):
        PretrainingConfig(num_decay_steps=5)
    with pytest.raises(ValidationError, match="exceed the 100 steps"):
        PretrainingConfig(phases=phases, num_warmup_steps=50, schedule="warmup_stable_decay", num_decay_steps=60)
