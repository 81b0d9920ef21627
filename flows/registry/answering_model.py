"""Model code of registered question answerers: MLflow copies this file into the model, and the consumer runs it.

There it may import mlflow, torch and transformers, but nothing of this project; transformers 5 has no
question-answering pipeline. Windows and spans equal those of training/squad/windows.py and answers.py, so the answers
are those that training's evaluation scored.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from pydantic import BaseModel
from tokenizers import Tokenizer
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Question(BaseModel):
    """A question about a text."""

    question: str
    context: str


class Answer(BaseModel):
    """A slice of the context, or "" for none; its character range, end excluded; start logit plus end logit."""

    answer: str
    start: int
    end: int
    score: float


class _Span(NamedTuple):
    score: float
    first: int
    last: int


class QuestionAnswerer(PythonModel):
    """Finds the span of a text that answers a question."""

    def load_context(self, context: Any) -> None:
        directory = context.artifacts["model"]
        self._model = AutoModelForQuestionAnswering.from_pretrained(directory, local_files_only=True).eval()
        self._tokenizer = text_tokenizer(AutoTokenizer.from_pretrained(directory, local_files_only=True))
        with open(context.artifacts["settings"]) as stream:
            self._settings = json.load(stream)
        ids = self._tokenizer.encode("", add_special_tokens=True).ids
        self._cls, self._sep = ids[0], ids[-1]

    def predict(self, model_input: list[Question]) -> list[Answer]:  # type: ignore[override]  # MLflow takes it
        return [self._answer(question.question, question.context) for question in model_input]

    def _answer(self, question: str, context: str) -> Answer:
        settings = self._settings
        asked = self._tokenizer.encode(question, add_special_tokens=False).ids[: settings["max_query_length"]]
        encoding = self._tokenizer.encode(context, add_special_tokens=False)
        if not encoding.ids:
            return Answer(answer="", start=0, end=0, score=0.0)
        places = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        starts, ends = with_dropped_characters(context, places[:, 0], places[:, 1])
        best, null_score = _Span(-np.inf, 0, 0), np.inf
        # Three positions are used by [CLS] and two [SEP].
        room = settings["max_seq_length"] - len(asked) - 3
        for begin, end, belongs in cut(len(encoding.ids), room, settings["doc_stride"]):
            logits = self._logits(asked, encoding.ids[begin:end])
            span = best_span(logits[len(asked) + 2 : -1], belongs, settings["max_answer_length"])
            if span.score > best.score:
                best = _Span(span.score, begin + span.first, begin + span.last)
            null_score = min(null_score, float(logits[0].sum()))
        threshold = settings["null_threshold"]
        if threshold is not None and null_score - best.score > threshold:
            return Answer(answer="", start=0, end=0, score=null_score)
        first, last = int(starts[best.first]), int(ends[best.last])
        return Answer(answer=context[first:last], start=first, end=last, score=best.score)

    def _logits(self, question: list[int], window: list[int]) -> npt.NDArray[np.float64]:
        """Start and end logits [tokens, 2] of `[CLS] question [SEP] window [SEP]`."""
        row = [self._cls, *question, self._sep, *window, self._sep]
        segments = [0] * (len(question) + 2) + [1] * (len(window) + 1)
        with torch.no_grad():
            output = self._model(input_ids=torch.tensor([row]), token_type_ids=torch.tensor([segments]))
        return torch.stack([output.start_logits[0], output.end_logits[0]], dim=1).double().numpy()


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


def cut(num_tokens: int, room: int, stride: int) -> list[tuple[int, int, BoolArray]]:
    """Windows on a context: first token, token after the last, and the mask of tokens with most context there."""
    last_start = max(0, -(-(num_tokens - room) // stride)) * stride
    bounds = [(start, min(start + room, num_tokens)) for start in range(0, last_start + 1, stride)]
    tokens = np.arange(num_tokens)
    merits = np.full((len(bounds), num_tokens), -np.inf)
    for merit, (start, end) in zip(merits, bounds, strict=True):
        here = tokens[start:end]
        merit[start:end] = np.minimum(here - start, end - 1 - here) + 0.01 * (end - start)
    owners = merits.argmax(axis=0)
    return [(start, end, owners[start:end] == index) for index, (start, end) in enumerate(bounds)]


def best_span(logits: npt.NDArray[np.float64], may_start: BoolArray, max_length: int) -> _Span:
    """The span with the highest sum of start and end logit; the first of equal ones.

    Args:
        logits: [tokens, 2], start and end.
        may_start: [tokens], where a span may start.
        max_length: maximum tokens of a span.
    """
    start_scores = np.where(may_start, logits[:, 0], -np.inf)
    ends = np.append(logits[:, 1], np.full(max_length - 1, -np.inf))
    scores = (start_scores[:, None] + np.lib.stride_tricks.sliding_window_view(ends, max_length)).ravel()
    first, extra = divmod(int(scores.argmax()), max_length)
    return _Span(float(scores.max()), first, first + extra)


def with_dropped_characters(context: str, starts: IntArray, ends: IntArray) -> tuple[IntArray, IntArray]:
    """Assign visible characters that the tokenizer drops, such as accents, to the previous token, else the next."""
    if context.isascii():
        return starts, ends
    next_starts = np.append(starts, len(context))[np.searchsorted(starts, ends, side="left")]
    wider_starts, wider_ends = starts.copy(), ends.copy()
    for index in np.flatnonzero(ends < next_starts):
        while wider_ends[index] < next_starts[index] and _is_visible(context[wider_ends[index]]):
            wider_ends[index] += 1
    previous_ends = np.append(0, wider_ends)[np.searchsorted(ends, starts, side="right")]
    for index in np.flatnonzero(starts > previous_ends):
        while wider_starts[index] > previous_ends[index] and _is_visible(context[wider_starts[index] - 1]):
            wider_starts[index] -= 1
    return wider_starts, wider_ends


def _is_visible(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character) not in ("Cc", "Cf")


set_model(QuestionAnswerer())
