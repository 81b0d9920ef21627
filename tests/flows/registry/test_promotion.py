"""The promotion gate on a real registry (SQLite): promotions, their tags, and rollbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from tests.support.flows.database_templates import install_mlflow_database

from flows.parameters.tracking_config import TrackingConfig
from flows.promote import EXIT_KEPT, main
from flows.registry import criteria, promotion
from flows.registry.criteria import Contest, Criterion, Evaluation, Verdict, judge
from flows.registry.promotion import CHALLENGER, CHAMPION
from flows.registry.registration import enter_contest
from flows.tracking.stores import open_registry
from pipelines.contract.errors import InputError
from training.glue.metrics import constant_baseline
from training.settings.glue import TASKS

NAME = "trial-cola"
DEV, OTHER_DEV = "d" * 64, "e" * 64

Enter = Callable[[Evaluation | None], str]


class Silent:
    """Replaces the console's narrator."""

    def event(self, _line: str) -> None:
        pass


def scored(
    score: float, data: str = DEV, metric: str = "accuracy", vocabulary: str | None = None, chance: float = 0.0
) -> Evaluation:
    return Evaluation(metric, score, data, vocabulary, chance)


def verdict(challenger: Evaluation | None, champion: Evaluation | None, margin: float) -> Verdict:
    return judge(Contest(challenger, TrackingConfig(promotion_margin=margin, chance_margin=0.0), True, champion))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite for the module."""
    uri = install_mlflow_database(f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db")
    open_registry(uri)
    return uri


@pytest.fixture
def client(store: str, request: pytest.FixtureRequest) -> MlflowClient:
    client = open_registry(store)
    client.create_registered_model(model_of(request))
    return client


@pytest.fixture
def name(client: MlflowClient, request: pytest.FixtureRequest) -> str:
    assert client
    return model_of(request)


def model_of(request: pytest.FixtureRequest) -> str:
    return f"{NAME}-{request.node.name.replace('[', '-').replace(']', '')}"


@pytest.fixture
def version(client: MlflowClient, name: str) -> Enter:
    """Create a version with or without an evaluation; returns its number."""

    def create(evaluation: Evaluation | None) -> str:
        tags = evaluation.tags() if evaluation else {}
        return str(client.create_model_version(name, source="file:///nowhere", tags=tags).version)

    return create


def tags_of(client: MlflowClient, name: str, number: str) -> Mapping[str, str]:
    return client.get_model_version(name, number).tags  # type: ignore[no-any-return]


def contest(client: MlflowClient, name: str, number: str, margin: float = 0.0) -> str:
    tracking = TrackingConfig(promotion_margin=margin)
    return enter_contest(client, name, number, tracking, Silent())  # type: ignore[arg-type]  # no Prefect here


def holder(client: MlflowClient, name: str) -> tuple[str | None, str | None]:
    return promotion.version_at(client, name, CHAMPION), promotion.version_at(client, name, CHALLENGER)


@pytest.mark.parametrize(
    ("challenger", "champion", "margin", "promoted", "words"),
    [
        (scored(0.6), scored(0.5), 0.0, True, "better by 0.1000, and the margin is 0"),
        (scored(0.5), scored(0.5), 0.0, False, "+0.0000 does not reach"),
        (scored(0.4), scored(0.5), 0.0, False, "-0.1000 does not reach the margin of 0"),
        (scored(0.509), scored(0.5), 0.01, False, "+0.0090 does not reach the margin of 0.01"),
        # In binary this difference is a little less than the margin.
        (scored(0.8), scored(0.79), 0.01, True, "better by 0.0100"),
        (scored(0.9, OTHER_DEV), scored(0.5), 0.0, False, "not comparable: other dev data"),
        (scored(0.9, metric="f1"), scored(0.5), 0.0, False, "not comparable: metric f1, the champion has accuracy"),
        (scored(0.9, vocabulary="a"), scored(0.5, vocabulary="b"), 0.0, False, "not comparable: other vocabulary"),
        (scored(0.3), scored(math.nan), 0.0, True, "the champion's score is not finite"),
        (None, scored(0.5), 0.0, False, "it has no score on development data"),
        (scored(0.9), None, 0.0, False, "the champion has no score"),
    ],
)
def test_the_verdict(
    challenger: Evaluation | None, champion: Evaluation | None, margin: float, promoted: bool, words: str
) -> None:
    decided = verdict(challenger, champion, margin)
    assert decided.promoted == promoted
    assert words in decided.reason


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_two_versions_never_replace_each_other_in_turn(one: float, other: float, margin: float) -> None:
    there, back = verdict(scored(one), scored(other), margin), verdict(scored(other), scored(one), margin)
    assert not (there.promoted and back.promoted)
    if there.promoted:
        assert one > other


@pytest.mark.parametrize(
    ("evaluation", "margin", "words"),
    [
        (scored(math.nan), 0.0, "accuracy nan against 0.0000 by chance: not finite"),
        (scored(math.inf), 0.0, "not finite"),
        (scored(0.5, chance=0.5), 0.0, "+0.0000 does not reach the margin of 0"),
        (scored(0.505, chance=0.5), 0.01, "+0.0050 does not reach the margin of 0.01 (tracking.chance_margin)"),
        # In binary this difference is a little less than the margin.
        (scored(0.8, chance=0.79), 0.01, None),
        (scored(0.0, metric="matthews_correlation"), 0.01, "+0.0000 does not reach"),
        (scored(-0.2, metric="pearson"), 0.01, "-0.2000 does not reach"),
        (scored(0.81, metric="f1", chance=0.8122), 0.01, "-0.0022 does not reach"),
        (None, 0.01, "has no score on development data"),
    ],
)
def test_the_floor(evaluation: Evaluation | None, margin: float, words: str | None) -> None:
    decided = judge(Contest(evaluation, TrackingConfig(chance_margin=margin)))
    assert decided.promoted == (words is None)
    assert (words or "no version was @champion yet") in decided.reason


@pytest.mark.slow
def test_a_new_criterion_is_one_row(
    client: MlflowClient, name: str, version: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_suspicious(contest: Contest) -> str | None:
        return "a score of 0.6 is too good to be true" if contest.challenger.score == 0.6 else None

    monkeypatch.setattr(criteria, "CRITERIA", (*criteria.CRITERIA, Criterion(is_suspicious)))
    assert contest(client, name, version(scored(0.5))) == CHAMPION
    assert contest(client, name, version(scored(0.6))) == CHALLENGER
    assert tags_of(client, name, "2")[promotion.REASON_TAG] == "a score of 0.6 is too good to be true"
    assert contest(client, name, version(scored(0.7))) == CHAMPION


@pytest.mark.slow
def test_a_first_version_that_learnt_nothing_stays_challenger(client: MlflowClient, name: str, version: Enter) -> None:
    """Even without a champion; the next version that learnt something becomes champion."""
    for evaluation in (scored(math.nan), scored(0.5, chance=0.5), None):
        assert contest(client, name, version(evaluation)) == CHALLENGER
    assert holder(client, name) == (None, "3")
    kept = client.get_model_version(name, "2")
    assert kept.tags[promotion.PROMOTION_TAG] == promotion.KEPT
    assert "does not reach the margin of 0.01" in kept.tags[promotion.REASON_TAG]
    assert kept.description.startswith("Gate: stays @challenger, accuracy 0.5000 against 0.5000 by chance")
    assert criteria.evaluation_of(kept) == scored(0.5, chance=0.5)
    assert contest(client, name, version(scored(0.6, chance=0.5))) == CHAMPION
    assert client.get_model_version(name, "4").description == "Gate: no version was @champion yet."
    assert promotion.promote(client, name, "1", TrackingConfig(), forced="a test").promoted


@pytest.mark.parametrize(
    ("labels", "task", "expected"),
    [
        ([0, 0, 0, 1], "rte", 0.75),
        ([0, 0, 0, 1], "qqp", 0.4),  # F1 of the positive class throughout: 2 p / (1 + p)
        ([1, 1, 1, 0], "cola", 0.0),
        ([1.5, 2.5, 5.0], "stsb", 0.0),
        ([0, 1, 2, 2], "mnli", 0.5),
    ],
)
def test_the_best_answer_that_is_always_the_same(labels: list[float], task: str, expected: float) -> None:
    name = next(name for name in TASKS if name.replace("-", "") == task)
    assert constant_baseline(TASKS[name], np.array(labels)) == pytest.approx(expected)


def test_where_less_is_better_the_gate_turns_round() -> None:
    low, high = (Evaluation("loss", score, "d", None, 9.0, more_is_better=False) for score in (2.0, 3.0))
    margins = TrackingConfig(promotion_margin=0.5, chance_margin=0.5)
    assert judge(Contest(low, margins, True, high)).promoted
    assert not judge(Contest(high, margins, True, low)).promoted
    assert judge(Contest(low, margins)).promoted
    assert not judge(Contest(Evaluation("loss", 9.5, "d", None, 9.0, more_is_better=False), margins)).promoted
    assert low.tags() == {**high.tags(), criteria.SCORE_TAG: "2.0"}
    version: Any = SimpleNamespace(tags=low.tags())
    assert criteria.evaluation_of(version) == low


def test_a_score_survives_its_tag() -> None:
    assert float(scored(0.1 + 0.2).tags()[criteria.SCORE_TAG]) == 0.1 + 0.2


@pytest.mark.slow
def test_versions_contend_and_the_tags_say_why(client: MlflowClient, name: str, version: Enter) -> None:
    first = version(scored(0.5))
    assert contest(client, name, first) == CHAMPION
    assert holder(client, name) == ("1", None)
    assert tags_of(client, name, first)[promotion.REASON_TAG] == "no version was @champion yet"

    worse = version(scored(0.505))
    assert contest(client, name, worse, margin=0.01) == CHALLENGER
    assert holder(client, name) == ("1", "2")
    tags = tags_of(client, name, worse)
    assert tags[promotion.PROMOTION_TAG] == promotion.KEPT
    assert tags[promotion.MARGIN_TAG] == "0.01"
    assert (tags[promotion.CHAMPION_SCORE_TAG], tags[promotion.CHALLENGER_SCORE_TAG]) == ("0.5", "0.505")
    assert tags[promotion.COMPARED_ON_TAG] == DEV
    assert promotion.PREVIOUS_TAG not in tags

    better = version(scored(0.6))
    assert contest(client, name, better, margin=0.01) == CHAMPION
    assert holder(client, name) == ("3", None)
    tags = tags_of(client, name, better)
    assert (tags[promotion.PROMOTION_TAG], tags[promotion.PREVIOUS_TAG]) == (promotion.PROMOTED, "1")

    # A second run that skips everything changes nothing.
    assert contest(client, name, better) == CHAMPION
    assert contest(client, name, worse) == CHALLENGER
    assert holder(client, name) == ("3", "2")


@pytest.mark.slow
def test_what_a_person_rolled_back_does_not_come_back_by_itself(
    client: MlflowClient, name: str, version: Enter
) -> None:
    for score in (0.5, 0.6, 0.7):
        contest(client, name, version(scored(score)))
    assert promotion.roll_back(client, name, "it swears") == ("3", "2")
    assert tags_of(client, name, "3")[promotion.REASON_TAG] == "rolled back to version 2: it swears"
    assert tags_of(client, name, "3")[promotion.PROMOTION_TAG] == promotion.ROLLED_BACK
    assert contest(client, name, "3") == CHALLENGER
    assert holder(client, name) == ("2", "3")
    assert promotion.roll_back(client, name, "it swears too") == ("2", "1")
    with pytest.raises(InputError, match=r"version 1 is @champion and replaced no other"):
        promotion.roll_back(client, name, "and it")


@pytest.mark.slow
def test_a_promotion_that_was_killed_is_taken_up_again(
    client: MlflowClient, name: str, version: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    contest(client, name, version(scored(0.5)))
    better = version(scored(0.6))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("set_registered_model_alias", "delete_registered_model_alias"):
        with monkeypatch.context() as patched:
            patched.setattr(MlflowClient, step, killed)
            with pytest.raises(KeyboardInterrupt):
                promotion.promote(client, name, better, TrackingConfig())
        assert promotion.PROMOTION_TAG not in tags_of(client, name, better)
        client.set_registered_model_alias(name, CHALLENGER, better)
    assert contest(client, name, better) == CHAMPION
    assert tags_of(client, name, better)[promotion.PROMOTION_TAG] == promotion.PROMOTED
    assert promotion.roll_back(client, name, "a test") == ("2", "1")


@pytest.mark.slow
def test_the_command(
    client: MlflowClient, store: str, name: str, version: Enter, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [name, "--tracking-uri", store]
    first, other, worse = version(scored(0.5)), version(scored(0.9, OTHER_DEV)), version(scored(0.4))
    assert main([*where, "--version", first]) == 0
    client.set_registered_model_alias(name, CHALLENGER, worse)
    assert main([*where, "--margin", "0.002"]) == EXIT_KEPT
    assert main([*where, "--version", other]) == EXIT_KEPT
    assert "kept back: not comparable: other dev data" in capsys.readouterr().out
    assert main([*where, "--version", other, "--force", "new dev set"]) == 0
    assert holder(client, name)[0] == other
    assert tags_of(client, name, other)[promotion.REASON_TAG] == (
        "forced: new dev set (gate: not comparable: other dev data)"
    )
    assert main([*where, "--rollback", "--reason", "too slow"]) == 0
    assert capsys.readouterr().out.endswith(f"{name}@champion is version 1 again; version 2 was rolled back\n")
    assert main([*where, "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["1", "2", "3"]
    assert "@champion" in listed[0]
    assert "rolled-back: rolled back to version 1: too slow" in listed[1]
    assert "@challenger" in listed[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-model", "--list"], "no-such-model: the registry has no such model"),
        ([NAME, "--margin", "-1"], "--margin -1.0: must be from 0 to 1"),
        ([NAME, "--chance-margin", "nan"], "--chance-margin nan: must be from 0 to 1"),
        ([NAME, "--rollback", "--version", "2"], "--rollback cannot be combined"),
    ],
)
def test_mistakes_are_refused(store: str, arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        main([*arguments, "--tracking-uri", store])


@pytest.mark.slow
def test_a_version_that_is_not_there_is_refused(client: MlflowClient, store: str, name: str) -> None:
    assert client
    with pytest.raises(InputError, match="the registry has no version 7"):
        main([name, "--version", "7", "--tracking-uri", store])
    with pytest.raises(InputError, match="no version is @challenger"):
        main([name, "--tracking-uri", store])
    with pytest.raises(InputError, match="nothing to roll back"):
        main([name, "--rollback", "--tracking-uri", store])


def test_a_mistyped_database_is_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match="no such database"):
        main([NAME, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no registry given"):
        main([NAME])
