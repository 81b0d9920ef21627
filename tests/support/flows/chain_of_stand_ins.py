"""Replace the stages of flows by stand-ins; as a script: `flows.end_to_end` with those stages."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # it also runs as a script

from tests.support.flows import stand_in
from tests.support.flows.database_templates import install_in_place_of_migrations

from flows.parameters.whole_recipe import WholeRecipe
from flows.running import plan as stages
from flows.running.plan import Stage, StageOutput


def _stage(whole: WholeRecipe, name: str, *outputs: str) -> Stage:
    recipe = whole.recipe
    overrides = [argument for override in recipe.overrides for argument in ("--set", override)]
    command = [sys.executable, os.path.abspath(stand_in.__file__), ",".join(outputs), recipe.path, *overrides]

    def output(label: str) -> StageOutput:
        return StageOutput(label, stand_in.directory_of(recipe, label), lambda: stand_in.key_of(recipe, label))

    return Stage(name, tuple(output(label) for label in outputs), lambda: command)


def install(setattr_: Callable[[Any, str, Any], None]) -> None:
    names = ("documents", "vocabulary", "examples")
    setattr_(stages, "preprocessing_stages", lambda whole: [_stage(whole, name, name) for name in names])
    setattr_(stages, "pretraining_stage", lambda whole, _continued=False: _stage(whole, "pretraining", "pretraining"))
    setattr_(stages, "finetuning_stages", lambda whole: [_stage(whole, "finetuning", "cola/pretrained", "cola/random")])
    setattr_(stages, "require_task_data", lambda _: None)
    install_in_place_of_migrations(setattr_)


if __name__ == "__main__":
    install(setattr)
    from flows.end_to_end import end_to_end
    from flows.running.command import run_as_command

    raise SystemExit(run_as_command(end_to_end))
