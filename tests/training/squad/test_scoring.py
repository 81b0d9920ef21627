"""The official scores by hand, and the threshold's search against trying each one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.squad.reading import Answer, Question
from training.squad.scoring import best_threshold, exact_match, f1, mean_scores, normalized, score


def question(identifier: str, *answers: str) -> Question:
    return Question(identifier, "article", 0, "?", tuple(Answer(0, text) for text in answers))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, sat!", "cat sat"),
        ("An a the", ""),
        ("a-b", "ab"),
        ("another theatre", "another theatre"),
        ("U.S.A.", "usa"),
        ("A.B. the\tC\u00a0D", "ab c d"),
        ("\u201cThe\u201d", "\u201c \u201d"),
        ("the\u2013end", "\u2013end"),
        ("STRASSE \u00c9", "strasse \u00e9"),
        ("$1,000", "1000"),
    ],
)
def test_normalisation_by_hand(text: str, expected: str) -> None:
    assert normalized(text) == expected


def test_exact_match_and_f1_by_hand() -> None:
    assert exact_match("The Denver Broncos!", "denver broncos") == 1.0
    assert exact_match("Denver", "denver broncos") == 0.0
    # 2 of 3 predicted words are right, 2 of 2 expected ones found: 2 * (2/3) * 1 / (2/3 + 1).
    assert f1("the old Denver Broncos", "Denver Broncos") == pytest.approx(0.8)
    # A word counts as often as both have it.
    assert f1("red red blue", "red green") == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert f1("blue", "red") == 0.0
    assert f1("the", "a") == 0.0


def test_the_best_annotation_counts() -> None:
    several = question("q", "Santa Clara", "in Santa Clara, California", "Levi's Stadium")
    assert score(several, "Santa Clara, California", False).exact_match == 0.0
    assert score(several, "Santa Clara, California", False).f1 == pytest.approx(2 * 1 * (3 / 4) / (1 + 3 / 4))
    assert score(several, "the santa clara", False) == score(several, "Santa Clara", True)
    assert score(several, "Santa Clara", True).exact_match == 1.0


def test_annotations_without_words_are_where_the_versions_differ() -> None:
    dotted = question("q", "the end", ".")
    first, second = score(dotted, "A", False), score(dotted, "A", True)
    assert (first.exact_match, first.f1) == (1.0, 0.0)
    assert (second.exact_match, second.f1) == (0.0, 0.0)
    only_a_dot = score(question("q", "."), "the", True)
    assert (only_a_dot.exact_match, only_a_dot.f1) == (1.0, 1.0)


def test_no_answer_is_right_for_impossible_questions_alone() -> None:
    questions = [question("yes", "red fox"), question("no"), question("none")]
    assert mean_scores(questions, {"yes": "fox", "no": "", "none": "fox"}) == {
        "exact_match": pytest.approx(1 / 3),
        "f1": pytest.approx((2 / 3 + 1) / 3),
        "HasAns_exact_match": 0.0,
        "HasAns_f1": pytest.approx(2 / 3),
        "NoAns_exact_match": 0.5,
        "NoAns_f1": 0.5,
    }
    assert mean_scores(questions[:1], {"yes": ""}) == {"exact_match": 0.0, "f1": 0.0}
    assert "HasAns_f1" not in mean_scores(questions[1:], {"no": "", "none": ""})


def test_best_threshold_by_hand() -> None:
    questions = [question("a", "fox"), question("b"), question("c", "red fox"), question("d")]
    answers = {"a": "fox", "b": "dog", "c": "fox", "d": "cat"}
    odds = {"a": -3.0, "b": -1.0, "c": 0.5, "d": 2.0}
    # Answering a gains 1, b loses 1, c gains 2/3, d loses 1, from 2 right by silence.
    assert best_threshold(questions, answers, odds) == (-3.0, pytest.approx(3 / 4))
    # With equal odds a and b can only be answered together, which gains nothing; so silence throughout is best.
    threshold, best = best_threshold(questions, answers, {**odds, "a": -1.0, "c": 3.0})
    assert best == 0.5
    assert threshold < -1.0
    # The official script takes the same where odds differ and something is gained.
    assert best_threshold(questions[:1], answers, odds) == (-3.0, 1.0)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(["", "fox", "red fox"]), st.sampled_from(["fox", "cat"]), st.integers(-4, 4)),
        min_size=1,
        max_size=12,
    )
)
def test_best_threshold_is_the_best_that_there_is(rows: list[tuple[str, str, int]]) -> None:
    questions = [question(str(index), *([gold] if gold else [])) for index, (gold, _, _) in enumerate(rows)]
    # With one more impossible question the rules are those of 2.0 throughout.
    questions.append(question("none"))
    answers = {str(index): answer for index, (_, answer, _) in enumerate(rows)} | {"none": "fox"}
    odds = {str(index): value / 2 for index, (_, _, value) in enumerate(rows)} | {"none": 9.0}

    def f1_at(threshold: float) -> float:
        predictions = {key: "" if odds[key] > threshold else text for key, text in answers.items()}
        return mean_scores(questions, predictions)["f1"]

    threshold, best = best_threshold(questions, answers, odds)
    assert best == pytest.approx(f1_at(threshold))
    assert best == pytest.approx(max(f1_at(value / 4) for value in range(-20, 40)))
