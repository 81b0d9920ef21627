"""The key of a fine-tuning trial of a recipe written for it, with an encoder at hand."""

from __future__ import annotations

from pathlib import Path

from pipelines.contract.manifest import StageKey
from pipelines.contract.recipe import read_recipe
from training.stages.finetuning import finetuning_key
from training.stages.sections import FinetuningSections


def trial_key(folder: Path, task: str, settings: str) -> StageKey:
    """Write recipe and encoder into a folder; `settings` are the other lines of [finetuning]."""
    encoder = folder / "encoder"
    encoder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (encoder / name).write_text("{}")
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'[run]\nworkspace = "{folder}/workspace"\n[finetuning]\nencoder = "{encoder}"\ntasks = ["{task}"]\n{settings}'
    )
    return finetuning_key(FinetuningSections.of(read_recipe(str(recipe))), task, "pretrained")
