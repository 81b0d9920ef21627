"""Answers from logits: against trying every span, and against the released code's order of things."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.squad.answers import Candidate, QuestionAnswers, WindowLogits, answer_question, best_spans
from training.squad.windows import ContextTokens, cut


def word_tokens(words: list[str]) -> ContextTokens:
    starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
    lengths = np.array([len(word) for word in words])
    return ContextTokens(" ".join(words), np.arange(len(words), dtype=np.uint32), starts, starts + lengths)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.booleans()), min_size=1, max_size=14),
    st.integers(1, 40),
    st.integers(1, 16),
)
def test_best_spans_are_the_best_of_all(rows: list[tuple[int, int, bool]], count: int, max_length: int) -> None:
    logits_S2 = np.array([row[:2] for row in rows], dtype=np.float32)
    may_start_S = np.array([row[2] for row in rows])
    every = [
        (float(logits_S2[first, 0] + logits_S2[last, 1]), first, last)
        for first in np.flatnonzero(may_start_S)
        for last in range(first, min(first + max_length, len(rows)))
    ]
    every.sort(key=lambda span: -span[0])
    first, last = best_spans(logits_S2, may_start_S, count, max_length)
    assert list(zip(first.tolist(), last.tolist(), strict=True)) == [span[1:] for span in every[:count]]


def slow_answers(
    tokens: ContextTokens, windows: list[WindowLogits], n_best_size: int, max_answer_length: int
) -> tuple[list[tuple[str, float]], float]:
    """write_predictions of the released code with all starts and ends in place of the best few."""
    candidates, null = [], math.inf
    for window in windows:
        logits = window.logits.tolist()
        null = min(null, logits[0][0] + logits[0][1])
        context = range(window.context_begin, window.context_begin + len(window.belongs))
        for start in range(len(logits)):
            for end in range(len(logits)):
                if start not in context or end not in context or not window.belongs[start - window.context_begin]:
                    continue
                if end < start or end - start + 1 > max_answer_length:
                    continue
                shift = window.first_token - window.context_begin
                candidates.append((tokens.text(start + shift, end + shift), logits[start][0] + logits[end][1]))
    candidates.sort(key=lambda candidate: -candidate[1])
    best: dict[str, float] = {}
    for text, value in candidates:
        if len(best) < n_best_size and text not in best:
            best[text] = value
    return list(best.items()), null


@pytest.mark.parametrize("seed", range(5))
def test_answers_of_several_windows_are_those_of_the_released_code(seed: int) -> None:
    generator = np.random.default_rng(seed)
    tokens = word_tokens([f"w{index}" for index in range(40)])
    windows = [
        WindowLogits(generator.normal(size=(5 + end - start + 1, 2)).astype(np.float32), 5, start, own)
        for start, end, own in cut(40, 16, 8)
    ]
    found = answer_question(tokens, windows, 20, 7)
    expected, null = slow_answers(tokens, windows, 20, 7)
    assert [candidate.text for candidate in found.best] == [text for text, _ in expected]
    assert [candidate.score for candidate in found.best] == pytest.approx([value for _, value in expected])
    assert found.null.score == pytest.approx(null)
    assert found.null_odds == pytest.approx(null - expected[0][1])


def test_equal_texts_are_one_answer_and_the_question_is_none() -> None:
    tokens = word_tokens(["fox", "ran", "fox"])
    logits = np.zeros((7, 2), dtype=np.float32)
    # [CLS] question [SEP] fox ran fox [SEP]: the question's logits are the highest and may not count.
    logits[1] = 9.0
    logits[[0, 2, 6]] = 5.0
    logits[3], logits[5] = 2.0, 1.0
    window = WindowLogits(logits, 3, 0, np.array([True, True, True]))
    found = answer_question(tokens, [window], 20, 1)
    assert [(candidate.text, candidate.score) for candidate in found.best] == [("fox", 4.0), ("ran", 0.0)]
    assert found.null == Candidate("", 5.0, 5.0)


def test_thresholds_and_n_best_by_hand() -> None:
    answers = QuestionAnswers((Candidate("fox", 1.0, 1.0), Candidate("cat", 0.5, 0.5)), Candidate("", 1.0, 0.5))
    assert answers.null_odds == -0.5
    assert answers.prediction(None) == "fox"
    assert answers.prediction(-0.5) == "fox"
    assert answers.prediction(-0.6) == ""
    rows = answers.n_best(20, with_null=True)
    assert [row["text"] for row in rows] == ["fox", "", "cat"]
    weights = [1.0, math.exp(-0.5), math.exp(-1.0)]
    assert [row["probability"] for row in rows] == pytest.approx([weight / sum(weights) for weight in weights])
    assert [row["text"] for row in answers.n_best(1, with_null=True)] == ["fox", ""]
    assert [row["text"] for row in answers.n_best(20, with_null=False)] == ["fox", "cat"]
