"""What a run cost: tokens, operations, measured device hours, and euros at the recipe's price, next to its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from flows.parameters.whole_recipe import WholeRecipe
from flows.report.html import UNKNOWN, foreign, joined, large, metric_value, paragraph, score, table, text
from flows.report.manifest_facts import trial_of
from flows.running.outcomes import FlowOutcome
from pipelines.contract.manifest import Manifest
from pipelines.contract.workspace import PRETRAINED, PRETRAINING
from pipelines.statistics.metrics import Metric, Unit
from pipelines.statistics.training import PretrainingStatistics, TrialStatistics
from training.bert.sizes import predicted_tokens, step_flops

Facts = dict[str, Any]

_SECONDS_PER_HOUR = 3600.0


class Expense(BaseModel):
    """One model that a run trained. seconds: wall time, during which it had all its devices."""

    model_config = ConfigDict(frozen=True)

    what: str
    metric: str
    score: float | None = None
    unit: Unit | None = None
    """Of a metric of pre-training; None for that of a task."""
    tokens: int | None = None
    flops: float | None = None
    devices: int | None = None
    seconds: float | None = None

    @property
    def device_hours(self) -> float | None:
        if self.seconds is None or self.devices is None:
            return None
        return self.devices * self.seconds / _SECONDS_PER_HOUR


def pretraining_flops(whole: WholeRecipe, trained: PretrainingStatistics) -> float:
    """Floating-point operations of a pre-training, from its tokens, their mean length and the share of predicted ones.

    With several phases the share is that of the last one, and all rows count as of mean length.
    """
    tokens, sequences = trained.tokens or 0, trained.sequences or 1
    phase = whole.pretraining.phases[-1]
    masked = tokens * (phase.masked_lm_prob or whole.examples.of_set(phase.examples).masked_lm_prob)
    masked = predicted_tokens(whole.model, tokens, sequences, masked)
    pairs = sequences if whole.examples.next_sentence else 0
    return step_flops(whole.model, whole.vocabulary.size, tokens, tokens * tokens / sequences, masked, pairs)


def cost_facts(whole: WholeRecipe, outcome: FlowOutcome, manifests: Mapping[str, Manifest]) -> Facts:
    """The expenses of a run's models; those from random weights, for comparison, are left out."""
    seconds = {stage.stage: stage.seconds for stage in outcome.stages}
    expenses = []
    if PRETRAINING in manifests:
        trained = manifests[PRETRAINING].statistics_as(PretrainingStatistics)
        metric = trained.judged_by
        expenses.append(
            Expense(
                what="pre-training",
                metric=metric.label,
                score=trained.heldout.get(metric.name),
                unit=metric.unit,
                tokens=trained.tokens,
                flops=pretraining_flops(whole, trained) if trained.tokens else None,
                devices=trained.world_size,
                seconds=seconds.get(PRETRAINING),
            )
        )
    for name, manifest in manifests.items():
        task, _, start = name.rpartition("/")
        # A trial that cannot be read is named among the tasks.
        if start == PRETRAINED and isinstance(trial := trial_of(manifest), TrialStatistics):
            devices = whole.finetuning.ranks or None
            expenses.append(
                Expense(what=task, metric=trial.metric, score=trial.score, devices=devices, seconds=trial.seconds)
            )
    return {
        "euros_per_device_hour": whole.run.euros_per_device_hour,
        "expenses": [expense.model_dump() for expense in expenses],
    }


def cost(facts: Facts) -> str:
    """A table of scores and what they cost, with their sum."""
    found = facts.get("cost", {})
    expenses = [Expense.model_validate(each) for each in found.get("expenses", ())]
    if not expenses:
        return ""
    price = found["euros_per_device_hour"]
    rows = [_row(foreign(expense.what), _score(expense), expense, price) for expense in expenses]
    if len(expenses) > 1:
        hours = [expense.device_hours for expense in expenses]
        known = sum(each for each in hours if each is not None)
        least = "" if None not in hours else "at least "
        total = (f"{least}{known:.3g}", UNKNOWN if price is None else f"{least}{known * price:.2f}")
        rows.append(("together", "", "", "", "", *total))
    header = ("", "dev or held-out score", "tokens", "operations", "devices", "device hours", "euros")
    paid = (
        "No price is set; run.euros_per_device_hour gives one."
        if price is None
        else f"A device hour costs {price:g} euros (run.euros_per_device_hour)."
    )
    note = (
        "Hours are measured: those of pre-training with the start of its processes, those of a task without. "
        f"Operations are counted. {paid}"
    )
    return joined(table("Cost of the models", header, rows, numbers=(1, 2, 3, 4, 5, 6)), paragraph(text(note)))


def _row(name: str, shown: str, expense: Expense, price: float | None) -> tuple[str, ...]:
    hours = expense.device_hours
    return (
        name,
        shown,
        large(expense.tokens) if expense.tokens is not None else "",
        f"{expense.flops:.2e}" if expense.flops is not None else "",
        UNKNOWN if expense.devices is None else str(expense.devices),
        UNKNOWN if hours is None else f"{hours:.3g}",
        UNKNOWN if hours is None or price is None else f"{hours * price:.2f}",
    )


def _score(expense: Expense) -> str:
    if expense.unit is None:
        return f"{text(expense.metric.replace('_', ' '))} {score(expense.metric, expense.score)}"
    metric = Metric(expense.metric, expense.metric, expense.unit)
    return f"{text(expense.metric)} {metric_value(metric, expense.score)}"
