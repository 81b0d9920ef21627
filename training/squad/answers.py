"""From logits of windows to answers: the best spans of a question, and how much better none would be.

As write_predictions of run_squad.py, but for one thing: that looks for pairs among the `n_best_size` best starts and
ends of a row, question and [CLS] included, and may find none; here all spans of permitted length are compared.
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

    logits: [row's tokens, 2] float32, start and end; token 0 is [CLS]. context_begin: where in the row the context's
    tokens begin. first_token: which of the context's tokens that is. belongs: [window's context tokens].
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
    """One possible answer; the empty text is none."""

    text: str
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


@dataclass(frozen=True)
class QuestionAnswers:
    """Answers to one question, the best first and all different; `null` is no answer, in its least likely window."""

    best: tuple[Candidate, ...]
    null: Candidate

    @property
    def null_odds(self) -> float:
        """Score of no answer less that of the best one."""
        return self.null.score - self.best[0].score

    def prediction(self, null_threshold: float | None) -> str:
        """The best answer, or "" where `null_odds` exceed the threshold; without one there is always an answer."""
        return "" if null_threshold is not None and self.null_odds > null_threshold else self.best[0].text

    def n_best(self, n_best_size: int, with_null: bool) -> list[dict[str, str | float]]:
        """Rows of nbest_predictions.json, with a softmax over their scores; no answer is always among them if asked."""
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
        may_start_S: [S], where a span may begin.
        count: spans that are wanted; fewer come where there are not so many.
        max_length: tokens of the longest span.

    Returns:
        Two arrays of the same length, int64. Equal sums stand in the order of their first, then last token.
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

    A span counts in the window that its first token belongs to, so that it is compared once and with most text around
    it. The score of no answer is the least of all windows: one window that sees an answer is enough.

    Args:
        tokens: the question's context.
        windows: all of them, at least one.
        n_best_size: answers that are kept.
        max_answer_length: tokens of the longest answer.
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
