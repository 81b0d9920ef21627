"""Decisions about bad steps, on sequences of losses that are easy to follow."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from training.resuming.recovery import MIN_STEPS, WINDOW_STEPS, Health, Limits, Verdict, judge

LIMITS = Limits(max_bad_steps=3, loss_spike_deviations=8.0, max_rollbacks=1)
NAN = float("nan")


def run(losses: list[float], health: Health | None = None, limits: Limits = LIMITS) -> tuple[Health, list[Verdict]]:
    """Judge a sequence; the optimizer refuses a step exactly where the loss is not finite."""
    health, verdicts = health or Health(), []
    for loss in losses:
        health, verdict = judge(health, loss, math.isfinite(loss), limits)
        verdicts.append(verdict)
    return health, verdicts


def wave(count: int) -> list[float]:
    """Losses around 5 whose median absolute deviation is 0.1."""
    return [5.0 + (0.1, -0.1, 0.2, -0.2, 0.0)[index % 5] for index in range(count)]


def test_skips_are_counted_and_a_good_step_ends_the_row() -> None:
    health, verdicts = run([5.0, NAN, float("inf"), 5.0, NAN])
    assert verdicts == [Verdict.ACCEPT, Verdict.SKIP, Verdict.SKIP, Verdict.ACCEPT, Verdict.SKIP]
    assert (health.skipped_steps, health.bad_steps_in_a_row, health.recent_losses) == (3, 1, (5.0, 5.0))


def test_bad_steps_in_a_row_lead_back_and_then_to_a_stop() -> None:
    health, verdicts = run([5.0, NAN, NAN, NAN])
    assert verdicts[-1] is Verdict.ROLL_BACK
    health = health.returned_to(Health(recent_losses=(5.0,)))
    assert health == Health(skipped_steps=3, rollbacks=1, recent_losses=(5.0,))
    assert run([5.0, NAN, NAN, NAN], health)[1][-1] is Verdict.STOP


def test_a_finite_loss_without_an_update_is_a_bad_step_unless_gradients_are_scaled() -> None:
    assert judge(Health(), 5.0, False, LIMITS)[0].bad_steps_in_a_row == 1
    scaled = Limits(3, 8.0, 1, gradients_are_scaled=True)
    health, verdict = judge(Health(), 5.0, False, scaled)
    assert (health.bad_steps_in_a_row, health.skipped_steps, verdict) == (0, 1, Verdict.SKIP)
    assert judge(Health(), NAN, False, scaled)[0].bad_steps_in_a_row == 1


def test_spikes_begin_at_the_stated_height_and_do_not_move_the_median() -> None:
    health, verdicts = run(wave(MIN_STEPS))
    assert set(verdicts) == {Verdict.ACCEPT}
    border = 5.0 + 8.0 * 1.4826 * 0.1
    assert run([border - 0.01], health)[1] == [Verdict.ACCEPT]
    after, verdicts = run([border + 0.01] * 3, health)
    assert verdicts == [Verdict.SPIKE, Verdict.SPIKE, Verdict.ROLL_BACK]
    assert (after.recent_losses, after.loss_spikes, after.skipped_steps) == (health.recent_losses, 3, 0)
    assert run([0.1], health)[1] == [Verdict.ACCEPT], "a fall is good news"
    assert run([border + 100.0], health, Limits(3, 0.0, 1))[1] == [Verdict.ACCEPT], "0 disables"


def test_no_spike_is_seen_before_the_spread_is_known() -> None:
    assert set(run([*wave(MIN_STEPS - 1), 1000.0])[1]) == {Verdict.ACCEPT}
    assert run([5.0] * MIN_STEPS + [5.3])[1][-1] is Verdict.ACCEPT, "a constant loss has a spread of 1 % all the same"
    assert run([5.0] * MIN_STEPS + [5.5])[1][-1] is Verdict.SPIKE


@given(st.lists(st.one_of(st.floats(0, 12), st.just(NAN)), max_size=300), st.integers(0, 300))
def test_a_resumed_run_decides_as_the_first_one(losses: list[float], cut: int) -> None:
    """Health survives the checkpoint's JSON, and holds all that later decisions need."""
    health, verdicts = run(losses)
    first, before = run(losses[:cut])
    restored = Health.from_json(json.loads(json.dumps(asdict(first), allow_nan=False)))
    assert restored == first
    assert run(losses[cut:], restored) == (health, verdicts[len(before) :])
    assert len(health.recent_losses) <= WINDOW_STEPS
