"""The criteria of the promotion gate, in one table.

A new criterion is one function and one row of CRITERIA; its settings are fields of the section [tracking].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flows.parameters.tracking_config import TrackingConfig

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

METRIC_TAG, SCORE_TAG = "clozeworks.metric", "clozeworks.score"
CHANCE_TAG = "clozeworks.chance_score"
DIRECTION_TAG, LESS_IS_BETTER = "clozeworks.metric.better", "less"
DATA_TAG, VOCABULARY_TAG = "clozeworks.evaluation_data", "clozeworks.evaluation_vocabulary"

_ROUNDING = 1e-9
"""Scores that differ by exactly the margin in decimal may differ by less in binary."""


@dataclass(frozen=True)
class Evaluation:
    """Score of a version, and the digest of the data that it was computed on.

    vocabulary: digest of the vocabulary, if the score depends on it; None otherwise. chance: the score of an
    untrained model, such as the best constant answer. more_is_better: whether higher scores are better.
    shown_as: display name of the metric, if it has one.
    """

    metric: str
    score: float
    data: str
    vocabulary: str | None = None
    chance: float = 0.0
    more_is_better: bool = True
    shown_as: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """Display name of the metric."""
        return self.shown_as or self.metric.replace("_", " ")

    def better_by(self, other: float) -> float:
        """By how much this score is better than another one; negative if it is worse."""
        return self.score - other if self.more_is_better else other - self.score

    def tags(self) -> dict[str, str]:
        """The tags of a version that store it."""
        tags = {
            METRIC_TAG: self.metric,
            SCORE_TAG: repr(self.score),
            CHANCE_TAG: repr(self.chance),
            DATA_TAG: self.data,
        }
        if not self.more_is_better:
            tags |= {DIRECTION_TAG: LESS_IS_BETTER}
        return tags if self.vocabulary is None else tags | {VOCABULARY_TAG: self.vocabulary}


def evaluation_of(version: ModelVersion) -> Evaluation | None:
    """The evaluation in a version's tags; None if they have no score."""
    tags = version.tags
    if not {METRIC_TAG, SCORE_TAG, DATA_TAG} <= tags.keys():
        return None
    chance = float(tags.get(CHANCE_TAG, "0"))
    more_is_better = tags.get(DIRECTION_TAG) != LESS_IS_BETTER
    score, data = float(tags[SCORE_TAG]), tags[DATA_TAG]
    return Evaluation(tags[METRIC_TAG], score, data, tags.get(VOCABULARY_TAG), chance, more_is_better)


@dataclass(frozen=True)
class Contest:
    """A candidate version and the current champion.

    stated: the evaluation of the candidate; champion_stated: the champion's; None for a version without a
    score. settings: the section [tracking]. has_champion: whether there is a champion to compare with.
    """

    stated: Evaluation | None
    settings: TrackingConfig
    has_champion: bool = False
    champion_stated: Evaluation | None = None

    @property
    def challenger(self) -> Evaluation:
        """The candidate's evaluation, for criteria after the one that rejects a version without a score."""
        assert self.stated is not None
        return self.stated

    @property
    def champion(self) -> Evaluation:
        """The champion's evaluation, for criteria after the one that rejects a champion without a score."""
        assert self.champion_stated is not None
        return self.champion_stated

    def compared(self) -> str:
        """Both scores in words."""
        challenger = f"{self.challenger.metric} {self.challenger.score:.4f}"
        return f"{challenger} against the champion's {self.champion.score:.4f}"


@dataclass(frozen=True)
class Criterion:
    """One condition that a version must meet.

    refusal: returns why the version must not become champion; None if the condition is met. compares: whether it
    compares with the champion, and is skipped without one.
    """

    refusal: Callable[[Contest], str | None]
    compares: bool = False


@dataclass(frozen=True)
class Verdict:
    """Decision of the gate, with its reason."""

    promoted: bool
    reason: str


def judge(contest: Contest) -> Verdict:
    """Check the criteria in the order of the table; the first that is not met decides."""
    for criterion in CRITERIA:
        if (contest.has_champion or not criterion.compares) and (why := criterion.refusal(contest)):
            return Verdict(False, why)
    if not contest.has_champion:
        return Verdict(True, f"no version was @{contest.settings.alias} yet")
    challenger, champion = contest.challenger, contest.champion
    if not math.isfinite(champion.score):
        return Verdict(True, f"{challenger.metric} {challenger.score:.4f}, and the champion's score is not finite")
    difference, margin = challenger.better_by(champion.score), contest.settings.promotion_margin
    return Verdict(True, f"{contest.compared()}: better by {difference:.4f}, and the margin is {margin:g}")


def _states_no_score(contest: Contest) -> str | None:
    if contest.stated is not None:
        return None
    return "it has no score on development data, so it cannot be compared with chance"


def _is_not_finite(contest: Contest) -> str | None:
    metric, score, chance = contest.challenger.metric, contest.challenger.score, contest.challenger.chance
    if math.isfinite(score) and math.isfinite(chance):
        return None
    return f"{metric} {score:.4f} against {chance:.4f} by chance: not finite"


def _learnt_nothing(contest: Contest) -> str | None:
    metric, score, chance = contest.challenger.metric, contest.challenger.score, contest.challenger.chance
    difference, margin = contest.challenger.better_by(chance), contest.settings.chance_margin
    if _exceeds(difference, margin):
        return None
    return (
        f"{metric} {score:.4f} against {chance:.4f} by chance: {difference:+.4f} does not reach the margin of "
        f"{margin:g} (tracking.chance_margin)"
    )


def _champion_states_no_score(contest: Contest) -> str | None:
    if contest.champion_stated is not None:
        return None
    return "not comparable: the champion has no score on development data"


def _has_another_metric(contest: Contest) -> str | None:
    if contest.challenger.metric == contest.champion.metric:
        return None
    return f"not comparable: metric {contest.challenger.metric}, the champion has {contest.champion.metric}"


def _has_another_vocabulary(contest: Contest) -> str | None:
    if contest.challenger.vocabulary == contest.champion.vocabulary:
        return None
    return f"not comparable: other vocabulary, and {contest.challenger.metric} depends on it"


def _has_other_data(contest: Contest) -> str | None:
    return None if contest.challenger.data == contest.champion.data else "not comparable: other dev data"


def _is_not_better(contest: Contest) -> str | None:
    difference = contest.challenger.better_by(contest.champion.score)
    margin = contest.settings.promotion_margin
    if not math.isfinite(contest.champion.score) or _exceeds(difference, margin):
        return None
    return f"{contest.compared()}: {difference:+.4f} does not reach the margin of {margin:g}"


def _exceeds(difference: float, margin: float) -> bool:
    return difference > 0 and difference >= margin - _ROUNDING


CRITERIA: tuple[Criterion, ...] = (
    Criterion(_states_no_score),
    Criterion(_is_not_finite),
    Criterion(_learnt_nothing),
    Criterion(_champion_states_no_score, compares=True),
    Criterion(_has_another_metric, compares=True),
    Criterion(_has_another_vocabulary, compares=True),
    Criterion(_has_other_data, compares=True),
    Criterion(_is_not_better, compares=True),
)
"""In the order in which they are checked; each may rely on those before it."""
