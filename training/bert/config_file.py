"""Reads config.json of a Hugging Face BERT directory; light to import, without torch: `status` calls this."""

from __future__ import annotations

import json

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.workspace import CONFIG_NAME
from training.settings.model import ModelConfig

BERT, OWN_TYPE = "bert", "clozeworks-bert"
"""Values of `model_type`; the second is that of models which transformers has no class for, and must not load."""
_OURS = ("size", "attention")
"""Settings that config.json does not have under their names."""


def read_config(directory: str) -> tuple[ModelConfig, int]:
    """Architecture and vocabulary size of a Hugging Face BERT directory.

    Raises:
        InputError: it is not a BERT model that this code supports.
    """
    path = storage.join(directory, CONFIG_NAME)
    if storage.file_size_bytes(path) is None:
        raise InputError(f"{directory}: no {CONFIG_NAME}; give the directory of a Hugging Face BERT model")
    try:
        values = json.loads(storage.read_bytes(path))
        # Missing keys have Hugging Face's defaults, which equal ours.
        known = {name: values[name] for name in ModelConfig.model_fields if name in values and name not in _OURS}
        if values.get("model_type") not in (BERT, OWN_TYPE):
            raise ValueError(f"model_type is {values.get('model_type')!r}, not 'bert'")
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise ValueError(f"position_embedding_type is {values['position_embedding_type']!r}, not 'absolute'")
        if values.get("hidden_act") in ("gelu_pytorch_tanh", "gelu_fast"):
            known["hidden_act"] = "gelu_new"
        if values.get("add_cross_attention"):
            raise ValueError("add_cross_attention is set, so it is the decoder of another model")
        if values.get("is_decoder"):
            known["attention"] = "left_to_right"
        if values.get("model_type") == OWN_TYPE and "attention" in values:
            known["attention"] = values["attention"]
        return ModelConfig.model_validate(known), int(values["vocab_size"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        first_line = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be used ({first_line}); give the directory of a BERT model") from error
