"""Selects answers from the logits of windows: the best spans of a question, and the odds of no answer.

As write_predictions of run_squad.py, with one exception: that combines the `n_best_size` best starts and ends of a row,
including question and [CLS], and may find no valid pair; here all spans of valid length are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.bert.packing import IntArray
from training.squad.windows import BoolArray, ContextTokens

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WindowLogits:
    """The model's output for one window.

    logits: [row's tokens, 2] float32, start and end; token 0 is [CLS]. context_begin: position in the row of the
    window's first context token. first_token: its index in the context. belongs: [window's context tokens].
    """

    logits: Logits
    context_begin: int
    first_token: int
    belongs: BoolArray

    @property
    def context_logits(self) -> Logits:
        return self.logits[self.context_begin : self.context_begin + len(self.belongs)]


@dataclass(frozen=True)
class Candidate:
    """One possible answer; the empty text means no answer."""

    text: str
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


@dataclass(frozen=True)
class QuestionAnswers:
    """Distinct answers to one question, the best first; `null` is no answer, in its least likely window."""

    best: tuple[Candidate, ...]
    null: Candidate

    @property
    def null_odds(self) -> float:
        """Score of no answer minus that of the best answer."""
        return self.null.score - self.best[0].score

    def prediction(self, null_threshold: float | None) -> str:
        """The best answer, or "" if `null_odds` exceeds the threshold; None means always an answer."""
        return "" if null_threshold is not None and self.null_odds > null_threshold else self.best[0].text

    def n_best(self, n_best_size: int, with_null: bool) -> list[dict[str, str | float]]:
        """Rows of nbest_predictions.json, with a softmax over their scores; `with_null` always includes no answer."""
        rows = list(self.best)
        if with_null:
            rows = sorted([*rows, self.null], key=lambda row: -row.score)[:n_best_size]
            rows = rows if self.null in rows else [*rows, self.null]
        weights = np.exp(np.array([row.score for row in rows]) - rows[0].score)
        return [
            {"text": row.text, "probability": probability, "start_logit": row.start_logit, "end_logit": row.end_logit}
            for row, probability in zip(rows, (weights / weights.sum()).tolist(), strict=True)
        ]


def best_spans(logits_S2: Logits, may_start_S: BoolArray, count: int, max_length: int) -> tuple[IntArray, IntArray]:
    """First and last tokens of the spans with the highest sum of start and end logit, the best first.

    Args:
        logits_S2: [S, 2] float32, start and end.
        may_start_S: [S], where a span may start.
        count: maximum number of spans to return.
        max_length: maximum tokens of a span.

    Returns:
        Two arrays of the same length, int64. Equal sums are ordered by first, then last token.
    """
    starts_S = np.where(may_start_S, logits_S2[:, 0], -np.inf).astype(np.float64)
    ends = np.append(logits_S2[:, 1].astype(np.float64), np.full(max_length - 1, -np.inf))
    scores = (starts_S[:, None] + np.lib.stride_tricks.sliding_window_view(ends, max_length)).ravel()
    kept = min(count, len(scores))
    least = np.partition(scores, len(scores) - kept)[len(scores) - kept]
    chosen = np.flatnonzero((scores >= least) & np.isfinite(scores))
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")][:kept]
    first, extra = np.divmod(chosen, max_length)
    return first, first + extra


def answer_question(
    tokens: ContextTokens, windows: Sequence[WindowLogits], n_best_size: int, max_answer_length: int
) -> QuestionAnswers:
    """Compare the spans of all windows of a question.

    A span is taken from the window that its first token belongs to, so that it is compared once and with most context.
    The score of no answer is the minimum over all windows: one window with an answer is enough.

    Args:
        tokens: the question's context.
        windows: all of them, at least one.
        n_best_size: number of answers to keep.
        max_answer_length: maximum tokens of an answer.
    """
    candidates: list[Candidate] = []
    for window in windows:
        logits_S2 = window.context_logits
        spans = best_spans(logits_S2, window.belongs, n_best_size, max_answer_length)
        for first, last in zip(*spans, strict=True):
            text = tokens.text(window.first_token + first, window.first_token + last)
            candidates.append(Candidate(text, float(logits_S2[first, 0]), float(logits_S2[last, 1])))
    candidates.sort(key=lambda candidate: -candidate.score)
    best: dict[str, Candidate] = {}
    for candidate in candidates:
        if len(best) < n_best_size:
            best.setdefault(candidate.text, candidate)
    assert best, "every token of a context belongs to one of its windows"
    nulls = [Candidate("", float(window.logits[0, 0]), float(window.logits[0, 1])) for window in windows]
    return QuestionAnswers(tuple(best.values()), min(nulls, key=lambda null: null.score))
