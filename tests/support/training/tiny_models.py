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


def _write(directory: str, kind: str, **more: object) -> None:
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
        # Weights of the usual 0.02 would give every text nearly the same answer.
        initializer_range=0.5,
        **more,
    )
    getattr(transformers, kind)(config).save_pretrained(directory)
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(directory)


def write_tiny_encoder(directory: str) -> None:
    _write(directory, "BertForPreTraining")


def write_tiny_classifier(directory: str) -> None:
    _write(directory, "BertForSequenceClassification")


def write_tiny_regressor(directory: str) -> None:
    """As training writes STS-B's model: a single output named score."""
    labels = {"id2label": {0: "score"}, "label2id": {"score": 0}}
    _write(directory, "BertForSequenceClassification", num_labels=1, problem_type="regression", **labels)


def write_tiny_tagger(directory: str) -> None:
    labels = dict(enumerate(["O", "B-LOC", "I-LOC"]))
    _write(
        directory,
        "BertForTokenClassification",
        num_labels=3,
        id2label=labels,
        label2id={label: index for index, label in labels.items()},
    )


def write_tiny_answerer(directory: str) -> None:
    _write(directory, "BertForQuestionAnswering")
