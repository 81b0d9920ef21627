"""Model code of registered classifiers that MLflow's flavour does not serve: MLflow copies this file into the model.

These are models with several labels per text, for which that flavour returns one, or a table of one column per rank,
and models with the head `segment_means`, for which transformers has no class. The consumer runs this code. There it may
import mlflow, torch, transformers and what these install, but nothing of this project. Rows are laid out and truncated
as in training/finetuning/text.py, so the probabilities are those of training's evaluation.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from pydantic import BaseModel
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

SEGMENT_MEANS = "SegmentMeansForSequenceClassification"
"""Its name in config.json."""


class Text(BaseModel):
    """A text, or a pair of texts, as in training."""

    text: str
    text_pair: str | None = None


class Labels(BaseModel):
    """The labels given, and the probability of every label; of a regression its score, and neither.

    With several labels per text all that reach the threshold are given, with one the most probable.
    """

    labels: list[str]
    probabilities: dict[str, float]
    score: float | None = None


class SegmentMeansClassifier(torch.nn.Module):
    """The head `segment_means` of training/finetuning/classifier.py, with the same names of weights."""

    def __init__(self, config: BertConfig, num_labels: int) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config, add_pooling_layer=False)
        size = config.hidden_size
        self.head = torch.nn.ModuleDict({"dense": torch.nn.Linear(4 * size, size)})
        self.classifier = torch.nn.Linear(size, num_labels)

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        """Logits [1, C] of one row."""
        hidden = self.bert(input_ids=input_ids, token_type_ids=token_type_ids).last_hidden_state[0]
        is_second = token_type_ids[0].bool()
        first = hidden[~is_second].mean(0)
        second = hidden[is_second].mean(0) if is_second.any() else torch.zeros_like(first)
        features = torch.tanh(self.head["dense"](torch.cat([first, second, (first - second).abs(), first * second])))
        logits: torch.Tensor = self.classifier(features)[None]
        return logits


class Labeller(PythonModel):
    """Gives a text any number of labels, one label, or a score, as `problem_type` in config.json says."""

    def load_context(self, context: Any) -> None:
        directory = context.artifacts["model"]
        self._model = loaded(directory).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory, config=self._model.config, local_files_only=True)
        self._tokenizer = text_tokenizer(tokenizer)
        with open(context.artifacts["settings"]) as stream:
            settings = json.load(stream)
        self._max_seq_length, self._threshold = settings["max_seq_length"], settings.get("threshold")
        ids = self._tokenizer.encode("", add_special_tokens=True).ids
        self._cls, self._sep = ids[0], ids[-1]

    def predict(self, model_input: list[Text]) -> list[Labels]:  # type: ignore[override]  # MLflow takes it
        return [self._labelled(each.text, each.text_pair) for each in model_input]

    def _labelled(self, text: str, text_pair: str | None) -> Labels:
        row, segments = self._row(text, text_pair)
        with torch.no_grad():
            output = self._model(input_ids=torch.tensor([row]), token_type_ids=torch.tensor([segments]))
        config, logits = self._model.config, getattr(output, "logits", output)[0].double()
        if config.problem_type == "regression":
            return Labels(labels=[], probabilities={}, score=float(logits[0]))
        of_several = self._threshold is not None
        shares = (logits.sigmoid() if of_several else logits.softmax(0)).tolist()
        probabilities = {config.id2label[number]: share for number, share in enumerate(shares)}
        least = self._threshold if of_several else max(shares)
        return Labels(
            labels=[name for name, share in probabilities.items() if share >= least], probabilities=probabilities
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


def loaded(directory: str) -> Any:
    """The model of a directory."""
    with open(os.path.join(directory, "config.json")) as stream:
        contents = json.load(stream)
    if contents["architectures"] != [SEGMENT_MEANS]:
        return AutoModelForSequenceClassification.from_pretrained(directory, local_files_only=True)
    # Under its own type no class of transformers loads it by mistake.
    del contents["model_type"]
    model = SegmentMeansClassifier(BertConfig(**contents), len(contents["id2label"]))
    model.load_state_dict(load_file(os.path.join(directory, "model.safetensors")))
    return model


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
