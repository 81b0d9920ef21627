"""How a run differs from BERT: each deviation is a setting, and the run logs all of them.

`faithful` is what the sections default to and flows/recipes/bert-base.toml spells out; `modern` is
flows/recipes/bert-base-modern.toml. The comparison covers how the model is trained, not its size, number of steps,
batches, learning rate or precision: a small run can be faithful. Neither does it cover the initial weights: a run from
`pretraining.initial_encoder` continues some recipe by its own settings, and its manifest states the encoder as lineage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.settings.model import ModelConfig
from training.settings.pretraining import PretrainingConfig

FAITHFUL: dict[str, dict[str, Any]] = {
    "model": {  # paper, section A.2; released code, modeling.py
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "attention": "bidirectional",
    },
    "pretraining": {  # released code, optimization.py
        "optimizer": "adam",
        "weight_decay": 0.01,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_eps": 1e-6,
        "adam_bias_correction": False,
        "max_grad_norm": 1.0,
        "schedule": "linear",
        "masking": "as_written",
        "mask_shares": {"mask": 0.8, "random": 0.1},
        "initial_encoder_share": 0.0,
    },
    "examples": {  # paper, section 3.1; released code, create_pretraining_data.py
        "masked_lm_prob": 0.15,
        "short_seq_prob": 0.1,
        "masking": "static",
        "next_sentence": True,
    },
}


def deviations(
    model: ModelConfig, pretraining: PretrainingConfig, examples: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from BERT's own, by `section.key`: the value of this run, and BERT's.

    Args:
        model, pretraining: sections of the recipe.
        examples: settings that the examples were built with, from their manifest; missing ones count as BERT's.
    """
    sections = {"model": model.model_dump(), "pretraining": pretraining.model_dump(), "examples": examples}
    found = {
        f"{section}.{key}": (sections[section][key], value)
        for section, settings in FAITHFUL.items()
        for key, value in settings.items()
        if sections[section].get(key, value) != value
    }
    return found | _of_phases(pretraining, examples.get("sets", ()))


def _of_phases(pretraining: PretrainingConfig, sets: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """Deviations of single phases: by their own settings, or by those of the sets of examples that they read."""
    own = {one["name"]: one for one in sets}
    found: dict[str, tuple[Any, Any]] = {}
    for index, phase in enumerate(pretraining.phases):
        of_set = own.get(phase.examples, {})
        masked_lm_prob = phase.masked_lm_prob or of_set.get("masked_lm_prob")
        for key, ours in (("masked_lm_prob", masked_lm_prob), ("masking", of_set.get("masking"))):
            if ours is not None and ours != FAITHFUL["examples"][key]:
                found[f"pretraining.phases.{index}.{key}"] = (ours, FAITHFUL["examples"][key])
    return found


def in_words(found: Mapping[str, tuple[Any, Any]]) -> str:
    """One line such as `attention_probs_dropout_prob 0.0 (BERT: 0.1), next_sentence false (BERT: true)`."""
    parts = (f"{name.partition('.')[2]} {_shown(ours)} (BERT: {_shown(its)})" for name, (ours, its) in found.items())
    return ", ".join(parts) or "none"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "/".join(f"{name} {_shown(part)}" for name, part in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)
