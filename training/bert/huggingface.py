"""Read and write Hugging Face directories; `transformers` alone loads what is written."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from torch import nn

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.workspace import CONFIG_NAME
from training.bert.config_file import BERT, OWN_TYPE
from training.bert.model_readme import LEFT_TO_RIGHT_CLASSIFIER, README_NAME, TWO_DIRECTIONS, own_reason, readme
from training.settings.model import Attention, ModelConfig
from training.tokenizing.export import write_tokenizer
from training.tokenizing.loading import load_tokenizer

WEIGHTS_NAME, OLD_WEIGHTS_NAME = "model.safetensors", "pytorch_model.bin"

_DECODER = "cls.predictions.decoder"
_TIED, _ANY_TIED = f"{_DECODER}.weight", "predictions.decoder.weight"
_BUFFERS = (".position_ids", ".embeddings.token_type_ids")
_HEADS = ("cls.", "classifier.")
_ATTENTION_KEYS: dict[Attention, dict[str, Any]] = {
    "bidirectional": {},
    "left_to_right": {"is_decoder": True, "use_cache": False},
    "two_directions": {"attention": "two_directions"},
}
"""Keys of config.json by `model.attention`; read_config reads them."""
_OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


def huggingface_config(config: ModelConfig, vocab_size: int, architecture: str, **more: Any) -> dict[str, Any]:
    """The contents of config.json; `more` adds keys such as id2label."""
    if config.is_causal and architecture == "BertForSequenceClassification":
        architecture = LEFT_TO_RIGHT_CLASSIFIER
    if config.attention == "two_directions":
        architecture = TWO_DIRECTIONS + architecture.removeprefix(TWO_DIRECTIONS).removeprefix("Bert")
    return {
        # Under the type `bert`, transformers would load it without an error, and compute something else.
        "model_type": BERT if own_reason(architecture) is None else OWN_TYPE,
        "architectures": [architecture],
        "vocab_size": vocab_size,
        **{name: value for name, value in config.identity().items() if name != "attention"},
        **_ATTENTION_KEYS[config.attention],
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **more,
    }


def write_model(
    directory: str,
    state: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    vocabulary_directory: str,
    origin: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """Write config.json, weights, tokenizer and README.md.

    Args:
        directory: created if missing; each file is written atomically.
        state: `state_dict` of an encoder with its heads, fp32.
        config: from `huggingface_config`.
        vocabulary_directory: the vocabulary or encoder whose tokenizer the model was trained with.
        origin: rows for the table in README.md, such as the run and the step.

    Returns:
        Names of the files written.

    Raises:
        InputError: the tokenizer cannot be read, or its export would produce different ids.
    """
    os.makedirs(directory, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.items() if not name.endswith(_ANY_TIED)}
    storage.write_bytes(
        storage.join(directory, WEIGHTS_NAME), safetensors.torch.save(tensors, metadata={"format": "pt"})
    )
    config = {**config, "pad_token_id": load_tokenizer(vocabulary_directory).id_of("pad_token") or 0}
    storage.write_bytes(storage.join(directory, CONFIG_NAME), json.dumps(config, indent=2).encode() + b"\n")
    names = write_tokenizer(directory, vocabulary_directory, int(config["max_position_embeddings"]))
    storage.write_bytes(storage.join(directory, README_NAME), readme(directory, origin).encode())
    return [CONFIG_NAME, README_NAME, WEIGHTS_NAME, *names]


def read_weights(directory: str) -> dict[str, torch.Tensor]:
    """Read all tensors of a Hugging Face BERT directory under our names: encoder keys start with `bert.`.

    Reads model.safetensors or, if it is missing, pytorch_model.bin; either may be sharded with an index. No code in a
    .bin is run: only tensors are unpickled. Names of the released TensorFlow code (gamma, beta) and keys without
    `bert.` are accepted; derived and tied tensors are skipped.

    Raises:
        InputError: no readable weights, or the decoder is not tied to the word embeddings.
    """
    stored = {_our_name(name): tensor for name, tensor in _stored_tensors(directory).items()}
    if not any(name.startswith("bert.") for name in stored):
        stored = {name if name.startswith(_HEADS) else f"bert.{name}": tensor for name, tensor in stored.items()}
    decoder = stored.pop(_TIED, None)
    embeddings = stored.get("bert.embeddings.word_embeddings.weight")
    if decoder is not None and embeddings is not None and not torch.equal(decoder, embeddings):
        _require_finite(embeddings, "bert.embeddings.word_embeddings.weight", directory)
        raise InputError(
            f"{directory}: weight {_TIED} differs from the word embeddings; BERT shares them, this model does not"
        )
    bias = stored.pop(f"{_DECODER}.bias", None)
    if bias is not None:
        stored.setdefault("cls.predictions.bias", bias)
    return {name: tensor for name, tensor in stored.items() if not name.endswith(_BUFFERS)}


def _our_name(name: str) -> str:
    for old, new in _OLD_NAMES:
        name = name.replace(old, new)
    return name


def _stored_tensors(directory: str) -> dict[str, torch.Tensor]:
    for name in (WEIGHTS_NAME, OLD_WEIGHTS_NAME):
        path = storage.join(directory, name)
        if storage.file_size_bytes(path) is not None:
            return _tensors_of(path)
        index = f"{path}.index.json"
        if storage.file_size_bytes(index) is not None:
            tensors: dict[str, torch.Tensor] = {}
            for part in _parts_of(index):
                tensors |= _tensors_of(storage.join(directory, part))
            return tensors
    raise InputError(
        f"{directory}: neither {WEIGHTS_NAME} nor {OLD_WEIGHTS_NAME}; give the directory of a Hugging Face BERT model"
    )


def _parts_of(index: str) -> list[str]:
    try:
        return sorted({str(part) for part in json.loads(storage.read_bytes(index))["weight_map"].values()})
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{index}: not an index of weights ({error}); download it again") from error


def _tensors_of(path: str) -> dict[str, torch.Tensor]:
    if storage.file_size_bytes(path) is None:
        raise InputError(f"{path}: missing, but the index lists it; download the model again")
    if not path.endswith(".bin"):
        try:
            return safetensors.torch.load_file(storage.local_path(path))
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({error}); download it again") from error
    try:
        found = torch.load(storage.local_path(path), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read as weights only ({reason}); save it as {WEIGHTS_NAME}") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise InputError(f"{path}: does not contain named tensors; save the model's state_dict")
    return found


def load_into(
    model: nn.Module, state: Mapping[str, torch.Tensor], source: str, optional: Sequence[str] = ()
) -> list[str]:
    """Copy weights into a model.

    Args:
        model: an encoder with its heads.
        state: from `read_weights`; keys that the model does not have are ignored.
        source: name to show in errors.
        optional: prefixes of parameters that may be absent and then keep their initial values, such as `classifier.`.

    Returns:
        Names of the parameters that kept their initial values.

    Raises:
        InputError: a weight is missing, has another shape, or is not finite.
    """
    kept: list[str] = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = state.get(name)
            if tensor is None:
                if not name.startswith(tuple(optional)):
                    raise InputError(f"{source}: weight {name} is missing; it is not a complete BERT of this kind")
                kept.append(name)
                continue
            if tensor.shape != parameter.shape:
                raise InputError(
                    f"{source}: weight {name} has shape {tuple(tensor.shape)}, the model needs {tuple(parameter.shape)}"
                )
            _require_finite(tensor, name, source)
            parameter.copy_(tensor)
    return kept


def _require_finite(tensor: torch.Tensor, name: str, source: str) -> None:
    """Refuse a weight with NaN or infinite values: one makes all outputs NaN."""
    if torch.isfinite(tensor).all():
        return
    count = int((~torch.isfinite(tensor)).sum())
    raise InputError(
        f"{source}: weight {name} has {count} of {tensor.numel()} numbers that are not finite; the model diverged in "
        "training, or its file is damaged: use another checkpoint, or train again with a lower learning rate"
    )
