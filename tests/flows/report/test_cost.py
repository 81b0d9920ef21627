"""The section on costs: what a finished workspace spent, and sums with a price and with hours that are unknown."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.support.flows.finished_workspace import write_workspace

from flows.parameters.requests import RunRequest
from flows.report.cost import cost
from flows.report.facts import gather

EXPENSES = [
    {"what": "pre-training", "metric": "MLM accuracy", "unit": "share", "score": 0.5, "tokens": 4_000_000}
    | {"flops": 1.5e15, "devices": 4, "seconds": 1_800.0},
    {"what": "co<l>a", "metric": "accuracy", "score": 0.75, "devices": 1, "seconds": 360.0},
    {"what": "rte", "metric": "accuracy", "score": 0.5, "devices": None, "seconds": 10.0},
]


def rows_of(price: float | None) -> list[list[str]]:
    page = cost({"cost": {"euros_per_device_hour": price, "expenses": EXPENSES}}).replace("\N{NO-BREAK SPACE}", " ")
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)] for row in rows][1:]


def test_hours_are_of_all_devices_and_have_a_price() -> None:
    assert rows_of(3.0) == [
        ["pre-training", "MLM accuracy 50.0 %", "4 million", "1.50e+15", "4", "2", "6.00"],
        ["co&lt;l&gt;a", "accuracy 75.0 %", "", "", "1", "0.1", "0.30"],
        ["rte", "accuracy 50.0 %", "", "", "-", "-", "-"],
        ["together", "", "", "", "", "at least 2.1", "at least 6.30"],
    ]


def test_without_a_price_there_are_no_euros() -> None:
    assert [row[-1] for row in rows_of(None)] == ["-", "-", "-", "-"]


def test_a_finished_workspace_has_expenses(write_recipe: Callable[..., str]) -> None:
    whole = RunRequest(recipe=write_recipe(), overrides=("run.euros_per_device_hour=2.5",)).read()
    found = gather(whole, write_workspace(whole), "sqlite:////ws/mlflow.db", None)["cost"]
    pretraining, *tasks = found["expenses"]
    assert found["euros_per_device_hour"] == 2.5
    assert (pretraining["tokens"], pretraining["seconds"]) == (2_344_405, 172.1)
    # 6 operations for each parameter and token, at least of the layers' matrices.
    assert pretraining["flops"] > 6 * pretraining["tokens"] * 100_000
    assert [task["what"] for task in tasks] == ["cola"]
