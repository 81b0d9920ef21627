"""Measures of one line, for C4's rules (Raffel et al., 2020, section 2.2; `c4_utils.clean_page` of its release).

A line is a paragraph of a web page there. In a text with printed lines, most end within a sentence.
"""

from __future__ import annotations

_SENTENCE_ENDS = (".", "!", "?", '"', "\u201d", "\u2019", "\u3002", "\uff01", "\uff1f")
_ELLIPSES = ("...", "\u2026")
_POLICY_NOTICES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def ends_sentence(line: str) -> float:
    """Whether the line ends in a terminal punctuation mark (1 or 0); an ellipsis is none."""
    return float(line.endswith(_SENTENCE_ENDS) and not line.endswith(_ELLIPSES))


def num_words(line: str) -> float:
    return float(len(line.split()))


def mentions_javascript(line: str) -> float:
    return float("javascript" in line.lower())


def is_policy_notice(line: str) -> float:
    """Whether the line has one of the phrases of notices about cookies and privacy (1 or 0)."""
    lowered = line.lower()
    return float(any(phrase in lowered for phrase in _POLICY_NOTICES))
