"""Span scores by seqeval, as in CoNLL's own scorer, and scores of plain labels by scikit-learn.

A span is right if both its words and its type are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.finetuning.metrics import METRICS, Values
from training.tagging.schemes import spans_of

Labels = Sequence[Sequence[str]]

NAMELESS = "_"
"""seqeval's name for the type of spans that are labelled B and I alone."""


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
    types = sorted({span.type or NAMELESS for labels in (*gold, *predicted) for span in spans_of(labels)})
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "spans": int(spans)}
        for name, precision, recall, f1, spans in zip(types, *columns, strict=True)
    }


def token_scores(gold: Labels, predicted: Labels) -> dict[str, float]:
    """accuracy over all words, and the mean of all labels' F1, from 0 to 1."""
    classes = _classes(gold, predicted)
    return {name: METRICS[name](*classes) for name in ("accuracy", "macro_f1")}


def scores_by_token_label(gold: Labels, predicted: Labels) -> dict[str, dict[str, float]]:
    """precision, recall, f1 and the number of words, by gold or predicted label, in the order of their names."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(*_classes(gold, predicted), average=None, zero_division=0.0)
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "words": int(words)}
        for name, precision, recall, f1, words in zip(_names(gold, predicted), *columns, strict=True)
    }


def _names(gold: Labels, predicted: Labels) -> list[str]:
    return sorted({label for labels in (*gold, *predicted) for label in labels})


def _classes(gold: Labels, predicted: Labels) -> tuple[Values, Values]:
    """Class numbers [words] of both, in the order of the labels' names."""
    numbers = {name: float(number) for number, name in enumerate(_names(gold, predicted))}
    first, second = (np.array([numbers[label] for own in labels for label in own]) for labels in (gold, predicted))
    return first, second


def _lists(labels: Labels) -> list[list[str]]:
    """Convert to lists, by which seqeval distinguishes sentences from words."""
    return [list(sentence) for sentence in labels]
