"""The stages of a run as commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.launching import single_node
from flows.parameters.whole_recipe import WholeRecipe
from flows.running import plan
from flows.running.plan import StageOutput, pretraining_stage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import StageKey
from pipelines.contract.recipe import read_recipe
from pipelines.results.marks import write_mark


def test_pretraining_continues_only_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_node, "gpu_count", lambda: 0)
    whole = WholeRecipe.check(read_recipe("flows/recipes/demo.toml"))
    assert "--continue" not in pretraining_stage(whole).command()
    assert pretraining_stage(whole, continue_finished=True).command()[-1] == "--continue"


def test_a_continued_run_keeps_its_identity_for_the_tracker() -> None:
    def digest(inputs: dict[str, str]) -> str:
        output = StageOutput("pretraining", "nowhere", lambda: StageKey("pretraining", 2, {"seed": 1}, inputs))
        command: Any = list
        return plan.Stage("pretraining", (output,), command).key_digest()

    assert digest({"examples": "a"}) == digest({"examples": "a", "continued_from": "b"}) != digest({"examples": "b"})


def test_what_cannot_be_continued_is_refused_before_any_stage(tmp_path: Path) -> None:
    whole = WholeRecipe.check(read_recipe("flows/recipes/demo.toml", [f"run.workspace={str(tmp_path)!r}"]))
    with pytest.raises(InputError, match=r"pretraining: no finished run to continue; run without --continue"):
        plan.require_finished_pretraining(whole)
    write_mark(f"{tmp_path}/pretraining", StageKey("pretraining", 2, {}, {}))
    plan.require_finished_pretraining(whole)
