"""Apply the quality rules that a recipe chooses to one text after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from pipelines.filtering.passage import Passage
from pipelines.settings.quality import QUALITY_RULES, QualityConfig, Rule

LINES_DROPPED = "low_quality_lines_dropped"
"""Name of the count of lines that break a rule, in the statistics of cleaning."""
QUALITY_PREFIX = "quality-"
"""Begins the reason of a reject; the name of the rule follows."""


class Verdict(NamedTuple):
    """What remains of a text, how many of its lines were dropped, and the first rule that it breaks."""

    text: str
    lines_dropped: int
    reason: str | None = None
    detail: str = ""


class _Check(NamedTuple):
    name: str
    measure: Callable[[Any], float]
    is_min: bool
    limit: float

    def is_kept(self, value: float) -> bool:
        return value >= self.limit if self.is_min else value <= self.limit


class QualityFilter:
    """The chosen rules: those on lines first, then those on what remains of the document, in the table's order."""

    def __init__(self, config: QualityConfig):
        checks = {name: _check_of(name, QUALITY_RULES[name], config.limit_of(name)) for name in config.chosen}
        self._of_lines = [check for name, check in checks.items() if QUALITY_RULES[name].unit == "line"]
        self._of_documents = [check for name, check in checks.items() if QUALITY_RULES[name].unit == "document"]

    def judge(self, text: str) -> Verdict:
        """Drop lines that break a rule, then look for the first rule that the rest breaks; blank lines stay."""
        num_dropped = 0
        if self._of_lines:
            lines = text.split("\n")
            kept = [line for line in lines if not line.strip() or self._keeps(line.strip())]
            num_dropped = len(lines) - len(kept)
            if num_dropped:
                text = "\n".join(kept)
        passage = Passage(text)
        for check in self._of_documents:
            value = check.measure(passage)
            if not check.is_kept(value):
                bound = "at least" if check.is_min else "at most"
                detail = f"{value:.4g}, must be {bound} {check.limit:g}"
                return Verdict(text, num_dropped, f"{QUALITY_PREFIX}{check.name}", detail)
        return Verdict(text, num_dropped)

    def _keeps(self, line: str) -> bool:
        return all(check.is_kept(check.measure(line)) for check in self._of_lines)


def _check_of(name: str, rule: Rule, limit: float) -> _Check:
    module, _, function = rule.measure.partition(":")
    measure = getattr(import_module(f"pipelines.filtering.{module}"), function)
    if rule.words_per_gram is not None:
        measure = partial(measure, words_per_gram=rule.words_per_gram)
    return _Check(name, measure, rule.bound == "min", limit)
