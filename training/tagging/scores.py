"""Span scores by seqeval, which counts as CoNLL's own scorer does: a span is right if its words and its type are."""

from __future__ import annotations

from collections.abc import Sequence

from training.tagging.schemes import spans_of

Labels = Sequence[Sequence[str]]


def span_scores(gold: Labels, predicted: Labels) -> dict[str, float]:
    """precision, recall and f1 over all spans of all types together, and the accuracy of words' labels, in 0 to 1."""
    from seqeval.metrics.sequence_labeling import accuracy_score, precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        _lists(gold), _lists(predicted), average="micro", zero_division=0
    )
    accuracy = accuracy_score(_lists(gold), _lists(predicted))
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "accuracy": float(accuracy)}


def scores_by_type(gold: Labels, predicted: Labels) -> dict[str, dict[str, float]]:
    """precision, recall, f1 and the number of gold spans, by type, in the order of their names."""
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    # Not its classification_report, which warns of empty means where nothing is marked.
    columns = precision_recall_fscore_support(_lists(gold), _lists(predicted), average=None, zero_division=0)
    types = sorted({span.type for labels in (*gold, *predicted) for span in spans_of(labels)})
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "spans": int(spans)}
        for name, precision, recall, f1, spans in zip(types, *columns, strict=True)
    }


def _lists(labels: Labels) -> list[list[str]]:
    """seqeval tells sentences from words by their being lists."""
    return [list(sentence) for sentence in labels]
