"""Exact match and F1 as the official evaluation scripts of SQuAD 1.1 and 2.0 compute them.

Scores range from 0 to 1, as everywhere in this project; the official scripts print percentages.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.squad.reading import Question

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower-cased, without ASCII punctuation and English articles, with single spaces (`normalize_answer`)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1.0 where both are equal after `normalized`."""
    return float(normalized(prediction) == normalized(answer))


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the words of both, with repetition; 0 without common words."""
    predicted, expected = normalized(prediction).split(), normalized(answer).split()
    same = (Counter(predicted) & Counter(expected)).total()
    return 2.0 * same / (len(predicted) + len(expected)) if same else 0.0


@dataclass(frozen=True)
class QuestionScore:
    """Scores of a prediction for one question, each the best over its annotated answers."""

    exact_match: float
    f1: float


def score(question: Question, prediction: str, is_version_2: bool) -> QuestionScore:
    """Scores of one prediction.

    The scripts differ if `normalized` leaves nothing of an annotated answer, such as the "." of three questions in the
    development file of 1.1: for 1.1 a prediction without words is then an exact match with F1 0; for 2.0 such an
    annotation is ignored, and if there is no other, a prediction without words is right.
    """
    golds = [answer.text for answer in question.answers if not is_version_2 or normalized(answer.text)]
    if not golds:
        matches = exact_match(prediction, "")
        return QuestionScore(matches, matches)
    return QuestionScore(
        max(exact_match(prediction, gold) for gold in golds), max(f1(prediction, gold) for gold in golds)
    )


def mean_scores(questions: Sequence[Question], predictions: Mapping[str, str]) -> dict[str, float]:
    """`exact_match` and `f1` over all questions; if some are impossible, also over each kind.

    Args:
        questions: at least one.
        predictions: question id -> text, "" for no answer; one for every question.
    """
    is_version_2 = any(question.is_impossible for question in questions)
    by_kind: dict[str, list[QuestionScore]] = {"": [], "HasAns_": [], "NoAns_": []}
    for question in questions:
        result = score(question, predictions[question.id], is_version_2)
        by_kind[""].append(result)
        by_kind["NoAns_" if question.is_impossible else "HasAns_"].append(result)
    means: dict[str, float] = {}
    for kind in by_kind if is_version_2 else [""]:
        if results := by_kind[kind]:
            means[f"{kind}exact_match"] = sum(result.exact_match for result in results) / len(results)
            means[f"{kind}f1"] = sum(result.f1 for result in results) / len(results)
    return means


def best_threshold(
    questions: Sequence[Question], answers: Mapping[str, str], null_odds: Mapping[str, float]
) -> tuple[float, float]:
    """The threshold on `null_odds` with the highest mean F1, and that F1 (`find_best_thresh` of 2.0).

    A question gets its answer if its odds do not exceed the threshold, and otherwise none. Candidate thresholds are the
    odds that occur, in ascending order; ties go to the first. Answering no question is possible, too, by a threshold
    below all odds: the official script returns 0.0 for it, which is right for probabilities only. Equal odds are
    treated together here, as by any threshold, but one by one in that script.

    Args:
        questions: at least one.
        answers: question id -> best answer that is not empty.
        null_odds: question id -> score of no answer minus that of the best answer.
    """
    gains: dict[float, float] = {}
    total = 0.0
    for question in questions:
        silent = score(question, "", True).f1
        odds = null_odds[question.id]
        gains[odds] = gains.get(odds, 0.0) + score(question, answers[question.id], True).f1 - silent
        total += silent
    best, threshold = total, min(gains) - 1.0
    for odds in sorted(gains):
        total += gains[odds]
        if total > best:
            best, threshold = total, odds
    return threshold, best / len(questions)
