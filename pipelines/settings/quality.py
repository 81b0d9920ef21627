"""Recipe section `[documents.quality]`, and its table of rules. A new rule is one function and one row here.

The rules are those of Gopher (Rae et al., 2021, appendix A.1.1) and C4 (Raffel et al., 2020, section 2.2), with their
limits. Words are what white space separates, so languages that write none between words need other rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, TypeAlias

from pydantic import Field, model_validator

from pipelines.contract.bounds import Bounded
from pipelines.contract.recipe import Section


class Rule(NamedTuple):
    """What a document, or one of its lines, must have at least (`min`) or at most (`max`)."""

    unit: Literal["document", "line"]
    """What is dropped if the rule is broken."""
    measure: str
    """Module and function below `pipelines.filtering`; it takes a `Passage`, or a line, and gives a number."""
    bound: Literal["min", "max"]
    limit: float
    words_per_gram: int | None = None
    """A second argument of the function, if it measures n-grams."""


QUALITY_RULES = {
    "terminal-punctuation": Rule("line", "web_lines:ends_sentence", "min", 1),
    "line-words": Rule("line", "web_lines:num_words", "min", 5),
    "javascript": Rule("line", "web_lines:mentions_javascript", "max", 0),
    "policy-notice": Rule("line", "web_lines:is_policy_notice", "max", 0),
    "lorem-ipsum": Rule("document", "words:num_lorem_ipsum", "max", 0),
    "curly-bracket": Rule("document", "words:num_curly_brackets", "max", 0),
    "min-sentences": Rule("document", "words:num_sentence_ends", "min", 3),
    "min-words": Rule("document", "words:num_words", "min", 50),
    "max-words": Rule("document", "words:num_words", "max", 100_000),
    "min-word-length": Rule("document", "words:mean_word_length", "min", 3),
    "max-word-length": Rule("document", "words:mean_word_length", "max", 10),
    "hash-ratio": Rule("document", "words:hashes_per_word", "max", 0.1),
    "ellipsis-ratio": Rule("document", "words:ellipses_per_word", "max", 0.1),
    "bullet-lines": Rule("document", "words:bullet_line_share", "max", 0.9),
    "ellipsis-lines": Rule("document", "words:ellipsis_line_share", "max", 0.3),
    "alphabetic-words": Rule("document", "words:alphabetic_word_share", "min", 0.8),
    "stop-words": Rule("document", "words:num_stop_words", "min", 2),
    "duplicate-lines": Rule("document", "repetition:duplicate_line_share", "max", 0.3),
    "duplicate-line-characters": Rule("document", "repetition:duplicate_line_character_share", "max", 0.2),
    "duplicate-paragraphs": Rule("document", "repetition:duplicate_paragraph_share", "max", 0.3),
    "duplicate-paragraph-characters": Rule("document", "repetition:duplicate_paragraph_character_share", "max", 0.2),
    "top-2-gram": Rule("document", "repetition:top_gram_share", "max", 0.2, 2),
    "top-3-gram": Rule("document", "repetition:top_gram_share", "max", 0.18, 3),
    "top-4-gram": Rule("document", "repetition:top_gram_share", "max", 0.16, 4),
    "duplicate-5-grams": Rule("document", "repetition:duplicate_gram_share", "max", 0.15, 5),
    "duplicate-6-grams": Rule("document", "repetition:duplicate_gram_share", "max", 0.14, 6),
    "duplicate-7-grams": Rule("document", "repetition:duplicate_gram_share", "max", 0.13, 7),
    "duplicate-8-grams": Rule("document", "repetition:duplicate_gram_share", "max", 0.12, 8),
    "duplicate-9-grams": Rule("document", "repetition:duplicate_gram_share", "max", 0.11, 9),
    "duplicate-10-grams": Rule("document", "repetition:duplicate_gram_share", "max", 0.10, 10),
}
"""Rules in the order in which they are applied: lines first, since documents are judged by the lines that stay."""

_NAMES = tuple(QUALITY_RULES)
RULE_SETS = {
    "c4": _NAMES[: _NAMES.index("min-words")],
    "gopher": _NAMES[_NAMES.index("min-words") : _NAMES.index("duplicate-lines")],
    "gopher-repetition": _NAMES[_NAMES.index("duplicate-lines") :],
}
"""Names for all rules of one origin."""

if TYPE_CHECKING:
    RuleName: TypeAlias = str
    RuleOrSet: TypeAlias = str
else:
    RuleName = Literal[_NAMES]
    RuleOrSet = Literal[(*RULE_SETS, *_NAMES)]

_LIMIT = "limits are counts and shares, and no document has a billion words"


class QualityConfig(Section):
    """`[documents.quality]`: drop lines and documents that break a rule, after cleaning and before near-duplicates."""

    rules: tuple[RuleOrSet, ...] = Field(min_length=1)
    """Sets `c4`, `gopher` and `gopher-repetition`, or single rules (`pipelines.settings.quality.QUALITY_RULES`)."""
    limits: dict[RuleName, Annotated[float, Bounded(0.0, 1e9, _LIMIT)]] = Field(default_factory=dict)
    """Limits by rule, in place of the papers'."""

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of single rules, in the order of the table."""
        names = {name for chosen in self.rules for name in RULE_SETS.get(chosen, (chosen,))}
        return tuple(name for name in QUALITY_RULES if name in names)

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets that a chosen rule belongs to."""
        return tuple(name for name, rules in RULE_SETS.items() if {*rules} & {*self.chosen})

    def limit_of(self, rule: str) -> float:
        return self.limits.get(rule, QUALITY_RULES[rule].limit)

    @model_validator(mode="after")
    def _limits_are_of_chosen_rules(self) -> QualityConfig:
        for name in self.limits:
            if name not in self.chosen:
                raise ValueError(
                    f"limits names {name!r}, which rules does not choose; add it there or remove the limit"
                )
        return self
