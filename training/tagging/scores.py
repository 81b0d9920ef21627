"""Span scores by seqeval, as in CoNLL's own scorer: a span is right if both its words and its type are."""

from __future__ import annotations

from collections.abc import Sequence

from training.tagging.schemes import spans_of

Labels = Sequence[Sequence[str]]


def span_scores(gold: Labels, predicted: Labels) -> dict[str, float]:
    """precision, recall and f1 over the spans of all types, and the accuracy of word labels, from 0 to 1."""
    from seqeval.metrics.sequence_labeling import accuracy_score, precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        _lists(gold), _lists(predicted), average="micro", zero_division=0
    )
    accuracy = accuracy_score(_lists(gold), _lists(predicted))
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "accuracy": float(accuracy)}


def scores_by_type(gold: Labels, predicted: Labels) -> dict[str, dict[str, float]]:
    """precision, recall, f1 and the number of gold spans, by type, in the order of their names."""
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    # Not classification_report, which warns about empty means if there are no spans.
    columns = precision_recall_fscore_support(_lists(gold), _lists(predicted), average=None, zero_division=0)
    types = sorted({span.type for labels in (*gold, *predicted) for span in spans_of(labels)})
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "spans": int(spans)}
        for name, precision, recall, f1, spans in zip(types, *columns, strict=True)
    }


def _lists(labels: Labels) -> list[list[str]]:
    """Convert to lists, by which seqeval distinguishes sentences from words."""
    return [list(sentence) for sentence in labels]
