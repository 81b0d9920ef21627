"""Model code of registered models with several labels per text: MLflow copies this file into the model.

The consumer runs it. There it may import mlflow, torch and transformers, but nothing of this project. MLflow's own
flavour returns one label per text, or a table of one column per rank. Rows are laid out and truncated as in
training/finetuning/text.py, so the probabilities are those of training's evaluation.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from pydantic import BaseModel
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class Text(BaseModel):
    """A text, or a pair of texts, as in training."""

    text: str
    text_pair: str | None = None


class Labels(BaseModel):
    """The labels whose probability reaches the threshold, and the probability of every label."""

    labels: list[str]
    probabilities: dict[str, float]


class Labeller(PythonModel):
    """Gives a text any number of labels."""

    def load_context(self, context: Any) -> None:
        directory = context.artifacts["model"]
        self._model = AutoModelForSequenceClassification.from_pretrained(directory, local_files_only=True).eval()
        self._tokenizer = text_tokenizer(AutoTokenizer.from_pretrained(directory, local_files_only=True))
        with open(context.artifacts["settings"]) as stream:
            settings = json.load(stream)
        self._max_seq_length, self._threshold = settings["max_seq_length"], settings["threshold"]
        ids = self._tokenizer.encode("", add_special_tokens=True).ids
        self._cls, self._sep = ids[0], ids[-1]

    def predict(self, model_input: list[Text]) -> list[Labels]:  # type: ignore[override]  # MLflow takes it
        return [self._labelled(each.text, each.text_pair) for each in model_input]

    def _labelled(self, text: str, text_pair: str | None) -> Labels:
        row, segments = self._row(text, text_pair)
        with torch.no_grad():
            output = self._model(input_ids=torch.tensor([row]), token_type_ids=torch.tensor([segments]))
        names = self._model.config.id2label
        shares = output.logits[0].double().sigmoid().tolist()
        probabilities = {names[number]: share for number, share in enumerate(shares)}
        return Labels(
            labels=[name for name, share in probabilities.items() if share >= self._threshold],
            probabilities=probabilities,
        )

    def _row(self, text: str, text_pair: str | None) -> tuple[list[int], list[int]]:
        """Token ids and segments of `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`."""
        first = self._tokenizer.encode(text, add_special_tokens=False).ids
        if text_pair is None:
            row = [self._cls, *first[: self._max_seq_length - 2], self._sep]
            return row, [0] * len(row)
        second = self._tokenizer.encode(text_pair, add_special_tokens=False).ids
        lengths = truncated_lengths(len(first), len(second), self._max_seq_length - 3)
        row = [self._cls, *first[: lengths[0]], self._sep, *second[: lengths[1]], self._sep]
        return row, [0] * (lengths[0] + 2) + [1] * (lengths[1] + 1)


def truncated_lengths(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """Lengths after removing tokens one by one from the longer part, and from B at a tie."""
    while length_a + length_b > room:
        if length_a > length_b:
            length_a -= 1
        else:
            length_b -= 1
    return length_a, length_b


def text_tokenizer(tokenizer: Any) -> Tokenizer:
    """The tokenizer as used in training: a literal "[MASK]" in a text is text, an added "<entity>" is a token."""
    contents = json.loads(tokenizer.backend_tokenizer.to_str())
    own = {tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token, tokenizer.pad_token, tokenizer.unk_token}
    if not tokenizer.split_special_tokens:
        for token in contents["added_tokens"]:
            token["special"] = token["content"] in own
    texts = Tokenizer.from_str(json.dumps(contents))
    texts.encode_special_tokens = True
    texts.no_truncation()
    texts.no_padding()
    return texts


set_model(Labeller())
