"""An encoder as others release it: written by `transformers`, in the forms that such directories have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForPreTraining

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
"""Those of the synthetic workspace, without dropout."""


def write_released(
    directory: str, vocabulary: str, kind: Any = BertForPreTraining, seed: int = 7, **config: Any
) -> Any:
    """Write an encoder with random weights and the tokenizer of a vocabulary; return the reference model."""
    words = len(Path(vocabulary, "vocab.txt").read_text().splitlines())
    settings = BertConfig(**{"vocab_size": words, **SIZES, **config})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(settings)
        with torch.no_grad():
            for parameter in model.parameters():
                # Biases and LayerNorm scales must take part as well.
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    model.save_pretrained(directory)
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        if Path(vocabulary, name).exists():
            shutil.copyfile(Path(vocabulary, name), Path(directory, name))
    return model


def write_in_old_form(source: str, directory: str, parts: int = 2) -> None:
    """Copy an encoder to a sharded pytorch_model.bin with the names of the released TensorFlow code."""
    import safetensors.torch

    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    state = safetensors.torch.load_file(f"{source}/model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state.items()
    }
    names, weight_map = sorted(renamed), {}
    for part in range(parts):
        file = f"pytorch_model-{part + 1:05d}-of-{parts:05d}.bin"
        torch.save({name: renamed[name] for name in names[part::parts]}, f"{directory}/{file}")
        weight_map |= dict.fromkeys(names[part::parts], file)
    Path(directory, "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
