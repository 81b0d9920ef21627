"""Budgets of phases by steps, epochs, tokens and hours, and batches that grow: against step-by-step counting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from training.optimizers.schedule import Schedule
from training.settings.pretraining import BatchWarmup, PhaseConfig, PretrainingConfig
from training.stages.budgets import Budget, about_steps, rows_of_epochs, sequences_of_steps, steps_of_sequences

PHASE = {"max_seq_length": 32, "global_batch_size": 16}


@dataclass(frozen=True)
class Run:
    """The counted fields of `Progress`."""

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def after(self, sequences: int, tokens: int, seconds: float) -> Run:
        return Run(
            self.step + 1,
            self.phase,
            self.phase_step + 1,
            self.position + sequences,
            self.tokens + tokens,
            self.seconds + seconds,
        )


def config(*phases: dict[str, Any], **more: Any) -> PretrainingConfig:
    return PretrainingConfig.model_validate({"phases": [{**PHASE, **phase} for phase in phases], **more})


def trained(section: PretrainingConfig, rows: list[int], tokens: list[int], seconds: float) -> list[Run]:
    """The state after each step of a run, whose steps have these tokens in turn."""
    budget, run, states = Budget.of(section, rows), Run(), [Run()]
    while run.phase < len(section.phases):
        sequences = section.phases[run.phase].batch_size_at(run.phase_step)
        run = run.after(sequences, tokens[run.step % len(tokens)], seconds)
        if budget.ends_phase(run):
            run = replace(run, phase=run.phase + 1, phase_step=0, position=0)
        states.append(run)
    return states


amounts = st.lists(st.integers(1, 12), min_size=1, max_size=3)


@given(amounts, st.integers(1, 200), st.lists(st.integers(1, 90), min_size=1, max_size=7), st.sampled_from([0.5, 7.0]))
def test_a_phase_ends_with_the_step_that_reaches_its_amount(
    lengths: list[int], rows: int, tokens: list[int], seconds: float
) -> None:
    for measure, unit in (("steps", 1), ("epochs", 0.25), ("tokens", 50), ("hours", 1 / 256)):
        section = config(*({measure: length * unit} for length in lengths), num_warmup_steps=0 if unit == 1 else 10_000)
        budget = Budget.of(section, [rows] * len(lengths))
        states = trained(section, [rows] * len(lengths), tokens, seconds)
        done = [budget.done(state) for state in states]
        assert done == sorted(done)
        assert done[-1] >= budget.total
        ends = [state.step for before, state in pairwise(states) if state.phase > before.phase]
        if measure == "steps":
            expected = [sum(lengths[: index + 1]) for index in range(len(lengths))]
        elif measure == "epochs":
            # Slow reference: read rows one step after another.
            expected, steps = [], 0
            for length in lengths:
                read = 0
                while Fraction(read, rows) < Fraction(length, 4):
                    read, steps = read + 16, steps + 1
                expected.append(steps)
        else:
            per_step = [tokens[index % len(tokens)] for index in range(10_000)]
            expected, steps, spent = [], 0, 0.0
            for index in range(len(lengths)):
                limit = sum(lengths[: index + 1]) * unit * (1 if measure == "tokens" else 3600)
                first = True
                while first or spent < limit:
                    spent += per_step[steps] if measure == "tokens" else seconds
                    steps, first = steps + 1, False
                expected.append(steps)
        assert ends == expected


@given(st.integers(1, 30), st.integers(2, 64), st.integers(1, 40), st.integers(0, 80))
def test_a_batch_grows_linearly_in_whole_sequences(start: int, more: int, steps: int, count: int) -> None:
    phase = PhaseConfig(
        max_seq_length=32,
        steps=steps + 1,
        global_batch_size=start + more,
        batch_warmup=BatchWarmup(start=start, steps=steps),
    )
    sizes = [phase.batch_size_at(step) for step in range(count)]
    assert sizes == sorted(sizes)
    exact = [start + min(Fraction(1), Fraction(step, steps)) * more for step in range(count)]
    assert all(0 <= wanted - size < 1 for size, wanted in zip(sizes, exact, strict=True))
    assert phase.batch_size_at(0) == start
    assert phase.batch_size_at(steps) == start + more
    assert sequences_of_steps(phase, count, 20.0) == sum(sizes)
    assert steps_of_sequences(phase, sum(sizes), 20.0) == pytest.approx(count)


def test_fractions_of_epochs_are_exact() -> None:
    assert rows_of_epochs(0.1, 30) == 3
    assert rows_of_epochs(0.1, 31) == 4
    assert rows_of_epochs(2, 7) == 14


@pytest.mark.parametrize("kind", ["linear", "cosine", "warmup_stable_decay"])
def test_the_schedule_is_by_the_measure(kind: str) -> None:
    """Half of the tokens has the rate of half of the steps, whatever the steps are."""
    shares = {"warmup_proportion": 0.1, "schedule": kind, "learning_rate": 1.0}
    by_tokens = Schedule.of(config({"tokens": 600}, {"tokens": 400}, **shares))
    by_hours = Schedule.of(config({"hours": 2.5}, **shares))
    by_steps = Schedule.of(config({"steps": 100}, schedule=kind, learning_rate=1.0, num_warmup_steps=10))
    for percent in range(101):
        expected = pytest.approx(by_steps.rate_at(percent), abs=1e-12)
        assert by_tokens.rate_at(percent * 10) == expected
        assert by_hours.rate_at(percent * 0.025) == expected
    assert by_tokens.rate_at(1_234) == by_tokens.rate_at(1_000)
    decay = Schedule.of(config({"epochs": 4}, schedule="warmup_stable_decay", decay_proportion=0.5, learning_rate=1.0))
    assert [decay.rate_at(epochs) for epochs in (0.02, 1, 3, 4)] == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_existing_recipes_keep_their_keys() -> None:
    phases = PretrainingConfig().identity()["phases"]
    names = {"max_seq_length", "steps", "global_batch_size", "global_batch_tokens"}
    assert [set(phase) for phase in phases] == [names, names]
    assert not {"warmup_proportion", "decay_proportion"} & set(PretrainingConfig().identity())


def test_steps_that_depend_on_the_data_are_unknown_without_it() -> None:
    assert about_steps(config({"steps": 9}, {"steps": 3}, num_warmup_steps=1), None) == [9, 3]
    assert about_steps(config({"epochs": 1}), None) is None


@pytest.mark.parametrize(
    ("phases", "more", "message"),
    [
        ([{}], {}, "this one has none of them; give exactly one"),
        ([{"steps": 9, "tokens": 5}], {}, "this one has steps and tokens; give exactly one"),
        ([{"steps": 9}, {"epochs": 2}], {"num_warmup_steps": 1}, "phases.0 is by steps and phases.1 by epochs"),
        ([{"tokens": 9}], {"num_warmup_steps": 7}, "num_warmup_steps = 7 counts steps, .* by tokens; set warmup_prop"),
        ([{"hours": 9}], {"num_decay_steps": 7}, "num_decay_steps = 7 counts steps, .* by hours; set decay_proportion"),
        ([{"steps": 9}], {"num_warmup_steps": 1, "warmup_proportion": 0.1}, "by steps; set num_warmup_steps instead"),
        ([{"epochs": 1}], {"decay_proportion": 0.1}, "decay_proportion = 0.1 with schedule = 'linear'"),
        ([{"epochs": 0}], {}, "greater than 0"),
        ([{"steps": 9, "batch_warmup": {"start": 16, "steps": 2}}], {}, "batch_warmup.start = 16 is not below"),
        ([{"steps": 9, "batch_warmup": {"start": 2, "steps": 9}}], {}, "batch_warmup.steps = 9 is not below the phase"),
    ],
)
def test_what_is_not_one_measure_is_refused(phases: list[dict[str, Any]], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(*phases, **more)


def test_a_batch_by_tokens_does_not_grow() -> None:
    phase = {"max_seq_length": 32, "steps": 9, "global_batch_tokens": 600, "batch_warmup": {"start": 2, "steps": 3}}
    with pytest.raises(ValidationError, match="batch_warmup with global_batch_tokens = 600"):
        PhaseConfig.model_validate(phase)
