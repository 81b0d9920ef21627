"""Hugging Face directories: written so that `transformers` alone loads them, and read from whoever wrote them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from torch import nn

from pipelines import storage
from pipelines.recipe import InputError
from training.config import ModelConfig

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
VOCABULARY_NAME, TOKENIZER_NAME = "vocab.txt", "tokenizer.json"
VOCABULARY_FILES = (VOCABULARY_NAME, TOKENIZER_NAME, "tokenizer_config.json", "special_tokens_map.json")

_TIED = "cls.predictions.decoder.weight"
_BUFFERS = ("position_ids", "embeddings.token_type_ids", "cls.predictions.decoder.bias")
_OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


def huggingface_config(config: ModelConfig, vocab_size: int, architecture: str, **more: Any) -> dict[str, Any]:
    """The contents of config.json; `more` adds keys such as id2label."""
    return {
        "model_type": "bert",
        "architectures": [architecture],
        "vocab_size": vocab_size,
        **config.identity(),
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **more,
    }


def write_model(
    directory: str, state: Mapping[str, torch.Tensor], config: Mapping[str, Any], vocabulary_directory: str
) -> list[str]:
    """Write config.json, model.safetensors and the vocabulary's files.

    Args:
        directory: created if need be; files appear whole or not at all.
        state: `state_dict` of one of training/heads.py's models, fp32.
        config: what `huggingface_config` made.
        vocabulary_directory: where vocab.txt, tokenizer.json and tokenizer_config.json are copied from.

    Returns:
        Names of the files written.
    """
    os.makedirs(directory, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.items() if name != _TIED}
    storage.write_bytes(
        storage.join(directory, WEIGHTS_NAME), safetensors.torch.save(tensors, metadata={"format": "pt"})
    )
    storage.write_bytes(storage.join(directory, CONFIG_NAME), json.dumps(config, indent=2).encode() + b"\n")
    names = [CONFIG_NAME, WEIGHTS_NAME]
    for name in VOCABULARY_FILES:
        source = storage.join(vocabulary_directory, name)
        if storage.file_size_bytes(source) is not None:
            storage.write_bytes(storage.join(directory, name), storage.read_bytes(source))
            names.append(name)
    return names


def read_config(directory: str) -> tuple[ModelConfig, int]:
    """Architecture and vocabulary size of a Hugging Face BERT directory.

    Raises:
        InputError: it is not a BERT that this code computes.
    """
    path = storage.join(directory, CONFIG_NAME)
    if storage.file_size_bytes(path) is None:
        raise InputError(f"{directory}: no {CONFIG_NAME}; give the directory of a Hugging Face BERT model")
    try:
        values = json.loads(storage.read_bytes(path))
        known = {name: values[name] for name in ModelConfig.model_fields if name in values}
        if values.get("model_type") != "bert":
            raise ValueError(f"model_type is {values.get('model_type')!r}, not 'bert'")
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise ValueError(f"position_embedding_type is {values['position_embedding_type']!r}, not 'absolute'")
        if values.get("hidden_act") in ("gelu_pytorch_tanh", "gelu_fast"):
            known["hidden_act"] = "gelu_new"
        return ModelConfig.model_validate(known), int(values["vocab_size"])
    except (ValueError, KeyError) as error:
        first_line = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be used ({first_line}); give the directory of a BERT model") from error


def read_weights(directory: str) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face BERT directory under our names: encoder keys begin with `bert.`.

    Raises:
        InputError: there is no readable model.safetensors.
    """
    path = storage.join(directory, WEIGHTS_NAME)
    if storage.file_size_bytes(path) is None:
        raise InputError(f"{directory}: no {WEIGHTS_NAME}; save the model with safe_serialization=True")
    try:
        tensors = safetensors.torch.load_file(storage.local_path(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error
    has_prefix = any(name.startswith("bert.") for name in tensors)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name == _TIED or name.endswith(_BUFFERS):
            continue
        for old, new in _OLD_NAMES:
            name = name.replace(old, new)
        is_head = name.startswith(("cls.", "classifier."))
        state[name if has_prefix or is_head else f"bert.{name}"] = tensor
    return state


def load_into(
    model: nn.Module, state: Mapping[str, torch.Tensor], source: str, optional: Sequence[str] = ()
) -> list[str]:
    """Copy weights into a model.

    Args:
        model: one of training/heads.py's.
        state: what `read_weights` gave; keys that the model has no use for are ignored.
        source: named in errors.
        optional: prefixes of parameters that may be absent and then keep their fresh values, such as `classifier.`.

    Returns:
        Names of the parameters that kept their fresh values.

    Raises:
        InputError: a weight is missing or of another shape.
    """
    kept: list[str] = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = state.get(name)
            if tensor is None:
                if not name.startswith(tuple(optional)):
                    raise InputError(f"{source}: lacks the weight {name}; it is not a whole BERT encoder")
                kept.append(name)
                continue
            if tensor.shape != parameter.shape:
                raise InputError(
                    f"{source}: weight {name} has shape {tuple(tensor.shape)}, the model needs {tuple(parameter.shape)}"
                )
            parameter.copy_(tensor)
    return kept
