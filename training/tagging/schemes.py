"""Span labels, IOB1, IOB2 and BIOES, read into spans and written from them; and plain labels, one for each word.

    words   Alex  Ann   went  to    New    York   Paris
    IOB1    I-PER I-PER O     O     I-LOC  I-LOC  B-LOC    B- only where a span follows one of its own type
    IOB2    B-PER I-PER O     O     B-LOC  I-LOC  B-LOC
    BIOES   B-PER E-PER O     O     B-LOC  E-LOC  S-LOC

One rule, that of conlleval (CoNLL-2000's scorer) and of seqeval's default mode, reads all three, even irregular labels:
a label continues a span if it is I- or E-, of the type of the label before it, and that one is B- or I-; any other
label than O starts a span. Each set of spans has exactly one spelling in a scheme, which defines regular labels.

A type may have any name, or none: B, I, E and S alone mark spans of one nameless type. Labels of the scheme `tokens`,
such as parts of speech, mark no spans.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

Scheme = Literal["iob1", "iob2", "bioes"]

TOKENS: Literal["tokens"] = "tokens"
"""The scheme of plain labels."""

OUTSIDE = "O"
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
PREFIXES: dict[Scheme, str] = {"iob1": "BI", "iob2": "BI", "bioes": "BIES"}


class Span(NamedTuple):
    """Words first to last (exclusive), of one type."""

    type: str
    first: int
    last: int


def is_label(text: str, prefixes: str = PREFIXES["bioes"]) -> bool:
    """Whether it is `O`, or a prefix alone, or a prefix, a hyphen and a type."""
    if text == OUTSIDE:
        return True
    return text[:1] != "" and text[0] in prefixes and (len(text) == 1 or (len(text) > 2 and text[1] == "-"))


def label_of(prefix: str, type_name: str) -> str:
    """The label of a prefix and a type, which may be empty."""
    return f"{prefix}-{type_name}" if type_name else prefix


def spans_of(labels: Sequence[str]) -> list[Span]:
    """The spans marked by labels of any scheme, in order; irregular labels are read by the rule above."""
    spans: list[Span] = []
    first, before = 0, OUTSIDE
    for index, label in enumerate((*labels, OUTSIDE)):
        if label[0] in "IE" and before[0] in "BI" and label[2:] == before[2:]:
            before = label
            continue
        if before != OUTSIDE:
            spans.append(Span(before[2:], first, index))
        first, before = index, label
    return spans


def spelled(spans: Iterable[Span], num_words: int, scheme: Scheme) -> list[str]:
    """Labels of `num_words` words; the spans are in order and do not overlap."""
    labels = [OUTSIDE] * num_words
    end_of_type: dict[str, int] = {}
    for type_name, first, last in spans:
        labels[first:last] = [label_of("I", type_name)] * (last - first)
        if scheme != "iob1" or end_of_type.get(type_name) == first:
            labels[first] = label_of("B", type_name)
        if scheme == "bioes":
            labels[last - 1] = label_of("S" if last - first == 1 else "E", type_name)
        end_of_type[type_name] = last
    return labels


def converted(labels: Sequence[str], scheme: Scheme) -> list[str]:
    """Convert labels to another scheme; the spans stay the same."""
    return spelled(spans_of(labels), len(labels), scheme)


def departures(labels: Sequence[str], scheme: Scheme) -> list[int]:
    """Indices of labels that deviate from the scheme's spelling; empty if and only if they are regular."""
    regular = converted(labels, scheme)
    return [index for index, (found, expected) in enumerate(zip(labels, regular, strict=True)) if found != expected]


def detected_scheme(sentences: Sequence[Sequence[str]]) -> Scheme:
    """BIOES if an E- or S- occurs; otherwise IOB1 or IOB2, whichever has fewer deviations, IOB2 at a tie.

    A tie is possible only without spans or with irregular labels; the spans are the same either way.
    """
    if any(label[0] in "ES" for labels in sentences for label in labels):
        return "bioes"
    iob1, iob2 = (sum(len(departures(labels, scheme)) for labels in sentences) for scheme in ("iob1", "iob2"))
    return "iob1" if iob1 < iob2 else "iob2"
