"""Hugging Face directories of random BERTs that are written in milliseconds."""

from __future__ import annotations

import os

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["it", "returns", "the", "number", "of", "items", "in", "list", ".", ",", "a", "first"],
]


def _write(directory: str, kind: str) -> None:
    import torch
    import transformers

    os.makedirs(directory, exist_ok=True)
    vocabulary = os.path.join(directory, "vocab.txt")
    with open(vocabulary, "w") as stream:
        stream.write("\n".join(WORDS) + "\n")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    getattr(transformers, kind)(config).save_pretrained(directory)
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(directory)


def write_tiny_encoder(directory: str) -> None:
    _write(directory, "BertForPreTraining")


def write_tiny_classifier(directory: str) -> None:
    _write(directory, "BertForSequenceClassification")
