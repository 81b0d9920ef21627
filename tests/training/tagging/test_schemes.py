"""Span labels against seqeval, by its default rule for any labels and by its strict schemes for regular ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

from training.tagging.schemes import (
    SCHEMES,
    Scheme,
    Span,
    converted,
    departures,
    detected_scheme,
    is_label,
    spans_of,
    spelled,
)

STRICT = {"iob1": IOB1, "iob2": IOB2, "bioes": IOBES}
TYPES = ("PER", "LOC", "GPE-LOC")

any_labels = st.lists(st.just("O") | st.tuples(st.sampled_from("BIES"), st.sampled_from(TYPES)).map("-".join))


@st.composite
def sentences(draw: st.DrawFn) -> tuple[list[Span], int]:
    """Spans in order, often side by side, and how many words there are."""
    spans: list[Span] = []
    end = 0
    for gap, length, name in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(TYPES)), max_size=6)
    ):
        spans.append(Span(name, end + gap, end + gap + length))
        end = spans[-1].last
    return spans, end + draw(st.integers(0, 2))


def test_the_table_of_the_module() -> None:
    spans = [Span("PER", 0, 2), Span("LOC", 4, 6), Span("LOC", 6, 7)]
    assert spelled(spans, 7, "iob1") == ["I-PER", "I-PER", "O", "O", "I-LOC", "I-LOC", "B-LOC"]
    assert spelled(spans, 7, "iob2") == ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "B-LOC"]
    assert spelled(spans, 7, "bioes") == ["B-PER", "E-PER", "O", "O", "B-LOC", "E-LOC", "S-LOC"]


@settings(deadline=None, derandomize=True)
@given(sentences(), st.sampled_from(SCHEMES))
def test_spans_survive_each_scheme_and_seqeval_reads_them_strictly(
    sentence: tuple[list[Span], int], scheme: Scheme
) -> None:
    spans, num_words = sentence
    labels = spelled(spans, num_words, scheme)
    assert spans_of(labels) == spans
    assert departures(labels, scheme) == []
    strict = Entities([labels], STRICT[scheme]).entities[0]
    assert [(entity.tag, entity.start, entity.end) for entity in strict] == spans


@settings(deadline=None, derandomize=True)
@given(sentences(), st.permutations(SCHEMES))
def test_conversions_chain_and_come_back(sentence: tuple[list[Span], int], order: list[Scheme]) -> None:
    spans, num_words = sentence
    labels = first = spelled(spans, num_words, order[0])
    for scheme in (*order[1:], order[0]):
        labels = converted(labels, scheme)
        assert spans_of(labels) == spans
    assert labels == first


@settings(deadline=None, derandomize=True)
@given(any_labels)
def test_irregular_labels_are_read_as_seqeval_reads_them(labels: list[str]) -> None:
    assert spans_of(labels) == [(name, first, last + 1) for name, first, last in get_entities(labels)]


@settings(deadline=None, derandomize=True)
@given(any_labels, st.sampled_from(SCHEMES))
def test_conversion_keeps_the_spans_of_irregular_labels(labels: list[str], scheme: Scheme) -> None:
    regular = converted(labels, scheme)
    assert get_entities(regular) == get_entities(labels)
    assert departures(regular, scheme) == []


def test_departures_tell_where() -> None:
    assert departures(["O", "I-PER", "I-PER", "O"], "iob2") == [1]
    assert departures(["O", "B-PER", "I-PER", "O"], "iob1") == [1]
    assert departures(["B-PER", "O", "I-PER", "E-PER"], "bioes") == [0, 2]


@settings(deadline=None, derandomize=True)
@given(st.lists(sentences(), max_size=5), st.sampled_from(SCHEMES))
def test_the_scheme_is_found_wherever_it_shows(texts: list[tuple[list[Span], int]], scheme: Scheme) -> None:
    found = detected_scheme([spelled(spans, num_words, scheme) for spans, num_words in texts])
    assert found == (scheme if any(spans for spans, _ in texts) else "iob2")


def test_a_tie_is_iob2() -> None:
    assert detected_scheme([["I-PER", "O", "B-PER"]]) == "iob2"
    assert detected_scheme([["I-PER", "O", "B-PER", "O", "I-PER"]]) == "iob1"


@pytest.mark.parametrize("text", ["O", "B-PER", "I-GPE-LOC", "S-x"])
def test_labels(text: str) -> None:
    assert is_label(text)


@pytest.mark.parametrize("text", ["", "o", "PER", "B-", "BPER", "B_PER", "L-PER", "_", "NN"])
def test_no_labels(text: str) -> None:
    assert not is_label(text)


@given(any_labels)
def test_spans_without_a_type_are_read_as_by_seqeval(labels: list[str]) -> None:
    bare = [label[:1] for label in labels]
    assert all(map(is_label, bare))
    assert [(span.first, span.last - 1) for span in spans_of(bare)] == [
        (first, last) for _, first, last in get_entities(bare)
    ]
    for scheme in SCHEMES:
        assert spans_of(converted(bare, scheme)) == spans_of(bare)
        assert all(is_label(label) and len(label) == 1 for label in converted(bare, scheme))
