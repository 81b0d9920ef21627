"""Encodes questions and contexts as rows `[CLS] question [SEP] window [SEP]`, and maps token spans to characters.

As convert_examples_to_features of run_squad.py: a context longer than a row is split into windows that start every
`doc_stride` tokens, and each of its tokens belongs to the window with most context on both sides of it. Unlike there,
every token keeps its offsets in the context, so a span's text is a slice of the context and needs no alignment.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipelines.contract.errors import InputError
from training.bert.packing import IntArray
from training.finetuning.text import EncodedText, TextEncoder
from training.settings.squad import SquadConfig
from training.squad.reading import Answer, Question, SquadFile
from training.squad.scoring import normalized

BoolArray = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.uint32]

_BATCH_TEXTS = 512
"""Texts tokenized at once; the tokenizer's results take some hundred bytes per token."""


@dataclass(frozen=True)
class ContextTokens:
    """A context's tokens. starts, ends: [tokens] int64, each token's first character and the one after its last."""

    context: str
    ids: Ids
    starts: IntArray
    ends: IntArray

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, first: int, last: int) -> str:
        """The context from the first token's first character to the last token's last."""
        return self.context[self.starts[first] : self.ends[last]]

    def span(self, answer: Answer) -> tuple[int, int] | None:
        """First and last of the tokens that share a character with an answer; None if there are none."""
        first = int(np.searchsorted(self.ends, answer.start, side="right"))
        last = int(np.searchsorted(self.starts, answer.end, side="left")) - 1
        return (first, last) if first <= last else None

    def recovers(self, answer: Answer) -> bool:
        """Whether the answer's span of tokens is an exact match: not if the answer ends inside a token."""
        span = self.span(answer)
        return span is not None and normalized(self.text(*span)) == normalized(answer.text)


class SquadEncoder(TextEncoder):
    """The tokenizer of a directory, with offsets."""

    def question_ids(self, questions: list[str], max_query_length: int) -> list[Ids]:
        """Token ids of each question, truncated to `max_query_length`."""
        ids: list[Ids] = []
        for start in range(0, len(questions), _BATCH_TEXTS):
            ids.extend(row[:max_query_length] for row in self._ids(questions[start : start + _BATCH_TEXTS]))
        return ids

    def context_tokens(self, contexts: list[str]) -> list[ContextTokens]:
        """Tokens of each context with their offsets."""
        result = []
        for start in range(0, len(contexts), _BATCH_TEXTS):
            batch = contexts[start : start + _BATCH_TEXTS]
            encodings = self._tokenizer.encode_batch(batch, add_special_tokens=False)
            for context, encoding in zip(batch, encodings, strict=True):
                places = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
                starts, ends = _with_dropped_characters(context, places[:, 0], places[:, 1])
                result.append(ContextTokens(context, np.array(encoding.ids, dtype=np.uint32), starts, ends))
        return result

    def row(self, question: Ids, window: Ids) -> Ids:
        """`[CLS] question [SEP] window [SEP]`."""
        return np.concatenate([self._cls, question, self._sep, window, self._sep])


def _with_dropped_characters(context: str, starts: IntArray, ends: IntArray) -> tuple[IntArray, IntArray]:
    """Assign visible characters dropped by the tokenizer to the token before them, or else to the one after.

    An example is combining accents, which uncased tokenizers strip. White space, control and format characters are not
    assigned.
    """
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


@dataclass(frozen=True)
class Windows:
    """All rows of a file, in the order of questions.

    text: the rows; a row's context tokens start at its `segment_b_starts`. first_tokens: [rows] int64, index in the
    context of a row's first context token. belongs: per row, [its context tokens], which of them belong to this window.
    rows_of: [questions + 1] int64, offsets of each question's rows. contexts: by their number in the file.
    """

    text: EncodedText
    first_tokens: IntArray
    belongs: list[BoolArray]
    rows_of: IntArray
    contexts: list[ContextTokens]


@lru_cache(maxsize=4096)
def cut(num_tokens: int, room: int, stride: int) -> tuple[tuple[int, int, BoolArray], ...]:
    """The windows on a context: first token, token after the last, and which of its tokens belong to it.

    A token belongs to the window in which min(tokens to its left, tokens to its right) + 0.01 * the window's length is
    largest, to the first at a tie (_check_is_max_context).
    """
    last_start = max(0, -(-(num_tokens - room) // stride)) * stride
    bounds = [(start, min(start + room, num_tokens)) for start in range(0, last_start + 1, stride)]
    tokens = np.arange(num_tokens)
    merits = np.full((len(bounds), num_tokens), -np.inf)
    for merit, (start, end) in zip(merits, bounds, strict=True):
        here = tokens[start:end]
        merit[start:end] = np.minimum(here - start, end - 1 - here) + 0.01 * (end - start)
    owners = merits.argmax(axis=0)
    return tuple((start, end, owners[start:end] == index) for index, (start, end) in enumerate(bounds))


def make_windows(file: SquadFile, encoder: SquadEncoder, config: SquadConfig) -> Windows:
    """Encode all questions of a file.

    Raises:
        InputError: a question's context has no tokens.
    """
    contexts = encoder.context_tokens(file.contexts)
    question_ids = encoder.question_ids([question.text for question in file.questions], config.max_query_length)
    rows: list[Ids] = []
    belongs: list[BoolArray] = []
    first_tokens, segment_b_starts, rows_of = [], [], [0]
    for question, ids in zip(file.questions, question_ids, strict=True):
        tokens = contexts[question.context]
        if not len(tokens):
            raise InputError(
                f"{file.path}: article {question.article!r}, question {question.id}: its context has no words; "
                "remove the paragraph"
            )
        # Three positions are reserved for [CLS] and the two [SEP].
        for start, end, own in cut(len(tokens), config.max_seq_length - len(ids) - 3, config.doc_stride):
            rows.append(encoder.row(ids, tokens.ids[start:end]))
            belongs.append(own)
            first_tokens.append(start)
            segment_b_starts.append(len(ids) + 2)
        rows_of.append(len(rows))
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    text = EncodedText(rows, lengths, np.array(segment_b_starts, dtype=np.int64))
    return Windows(
        text,
        np.array(first_tokens, dtype=np.int64),
        belongs,
        np.array(rows_of, dtype=np.int64),
        contexts,
    )


@dataclass(frozen=True)
class Targets:
    """Training targets: [rows] int64 positions in each row, both 0 ([CLS]) if the window lacks the answer.

    inexact: questions without an annotated answer on token boundaries; their span is the one that covers it.
    """

    starts: IntArray
    ends: IntArray
    inexact: int


def make_targets(file: SquadFile, windows: Windows) -> Targets:
    """Target spans: of several answers to a question the first that its tokens recover exactly.

    Raises:
        InputError: an answer has no tokens.
    """
    starts, ends = np.zeros_like(windows.first_tokens), np.zeros_like(windows.first_tokens)
    inexact = 0
    for number, question in enumerate(file.questions):
        if question.is_impossible:
            continue
        first, last, exact = _training_span(file.path, question, windows.contexts[question.context])
        inexact += not exact
        for row in range(windows.rows_of[number], windows.rows_of[number + 1]):
            begin, size = windows.first_tokens[row], len(windows.belongs[row])
            if begin <= first and last < begin + size:
                starts[row] = first - begin + windows.text.segment_b_starts[row]
                ends[row] = last - begin + windows.text.segment_b_starts[row]
    return Targets(starts, ends, inexact)


def _training_span(path: str, question: Question, tokens: ContextTokens) -> tuple[int, int, bool]:
    exact = next((answer for answer in question.answers if tokens.recovers(answer)), None)
    answer = question.answers[0] if exact is None else exact
    span = tokens.span(answer)
    if span is None:
        raise InputError(
            f"{path}: article {question.article!r}, question {question.id}: the tokenizer drops all of the answer "
            f"{answer.text!r}; remove the question"
        )
    return (*span, exact is not None)
