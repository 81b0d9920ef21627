"""Model code of registered taggers: MLflow copies this file into the model, and the consumer runs it.

There it may import mlflow, torch and transformers, but nothing of this project. Rows are laid out as in
training/tagging/encoding.py without document context, so each word gets the label of training's evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from pydantic import BaseModel
from tokenizers import Tokenizer
from transformers import AutoModelForTokenClassification, AutoTokenizer

IntArray = npt.NDArray[np.int64]

_UNKNOWN_WORD = "x" * 1_000
"""Too long for WordPiece, so it becomes [UNK]; replaces a word of which the tokenizer leaves nothing."""


class TaggedWords(BaseModel):
    """The words of a text, and the label of each: in IOB2, or a plain one."""

    words: list[str]
    labels: list[str]


class Tagger(PythonModel):
    """Labels words, which are separated by white space."""

    def load_context(self, context: Any) -> None:
        directory = context.artifacts["model"]
        self._model = AutoModelForTokenClassification.from_pretrained(directory, local_files_only=True).eval()
        self._tokenizer = text_tokenizer(AutoTokenizer.from_pretrained(directory, local_files_only=True))
        with open(context.artifacts["settings"]) as stream:
            self._room = json.load(stream)["max_seq_length"] - 2
        ids = self._tokenizer.encode("", add_special_tokens=True).ids
        self._cls, self._sep = ids[0], ids[-1]

    def predict(self, model_input: list[str]) -> list[TaggedWords]:  # type: ignore[override]  # MLflow takes it
        return [self._tagged(text.split()) for text in model_input]

    def _tagged(self, words: list[str]) -> TaggedWords:
        pieces = [piece[: self._room] for piece in self._sub_tokens(words)]
        offsets = np.cumsum([0, *map(len, pieces)])
        tokens = [token for piece in pieces for token in piece]
        names = self._model.config.id2label
        labels: list[str] = []
        for first, last, left, right in rows(offsets, self._room):
            row = [self._cls, *tokens[offsets[left] : offsets[right]], self._sep]
            with torch.no_grad():
                logits = self._model(input_ids=torch.tensor([row])).logits[0]
            places = torch.from_numpy(offsets[first:last] - offsets[left] + 1)
            labels += [names[choice] for choice in logits[places].argmax(1).tolist()]
        return TaggedWords(words=words, labels=labels)

    def _sub_tokens(self, words: list[str]) -> list[list[int]]:
        unknown = self._tokenizer.encode(_UNKNOWN_WORD, add_special_tokens=False).ids
        return [encoding.ids or unknown for encoding in self._tokenizer.encode_batch(words, add_special_tokens=False)]


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


def rows(offsets: IntArray, room: int) -> Iterator[tuple[int, int, int, int]]:
    """Rows that label the words of a sentence: labels for first to last, input from left to right, ends excluded.

    A sentence too long for one row is labelled in runs of half a row, each with as many words of context.

    Args:
        offsets: [words + 1] int64, first sub-token of each word.
        room: sub-tokens in a row.
    """
    words = len(offsets) - 1
    first = 0
    while first < words:
        last = words
        if offsets[words] > room:
            last = int(np.searchsorted(offsets, offsets[first] + room // 2, side="right")) - 1
            last = min(max(last, first + 1), words)
        spare = room - int(offsets[last] - offsets[first])
        after = min(int(offsets[-1] - offsets[last]), spare - spare // 2)
        left = int(np.searchsorted(offsets, max(int(offsets[first]) - (spare - after), 0), side="left"))
        spare -= int(offsets[first] - offsets[left])
        right = min(int(np.searchsorted(offsets, offsets[last] + spare, side="right")) - 1, words)
        yield first, last, left, right
        first = last


set_model(Tagger())
