"""Encodes text as token ids with a model's own vocabulary, as in run_classifier.py of the released code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.statistics.preprocessing import TextFit
from training.bert.packing import IntArray
from training.finetuning.coverage import coverage_of
from training.tokenizing.loading import load_tokenizer


@dataclass(frozen=True)
class EncodedText:
    """Token ids of many rows. input_ids: one uint32 array per row; lengths, segment_b_starts: [rows] int64."""

    input_ids: list[npt.NDArray[np.uint32]]
    lengths: IntArray
    segment_b_starts: IntArray


class TextEncoder:
    """The tokenizer of a directory, with the ids of `transformers`; a literal "[MASK]" in a text is text."""

    def __init__(self, directory: str) -> None:
        """Read the tokenizer.

        Raises:
            InputError: it is missing, not BERT's, or its files contradict each other.
        """
        loaded = load_tokenizer(directory)
        self._tokenizer = loaded.for_texts()
        self._cls, self._sep = (np.array([loaded.id_of(role)], dtype=np.uint32) for role in ("cls_token", "sep_token"))

    def encode(self, sentences_a: list[str], sentences_b: list[str] | None, max_seq_length: int) -> EncodedText:
        """`[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, truncated at the end of the longer part."""
        rows_a = self._ids(sentences_a)
        rows_b = self._ids(sentences_b) if sentences_b is not None else None
        rows, starts = [], []
        for index, tokens_a in enumerate(rows_a):
            if rows_b is None:
                row = np.concatenate([self._cls, tokens_a[: max_seq_length - 2], self._sep])
                starts.append(len(row))
            else:
                tokens_b = rows_b[index]
                length_a, length_b = truncated_lengths(len(tokens_a), len(tokens_b), max_seq_length - 3)
                row = np.concatenate([self._cls, tokens_a[:length_a], self._sep, tokens_b[:length_b], self._sep])
                starts.append(length_a + 2)
            rows.append(row)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        return EncodedText(rows, lengths, np.array(starts, dtype=np.int64))

    def coverage(self, texts: Iterable[str]) -> TextFit:
        """How well the vocabulary fits texts."""
        return coverage_of(self._tokenizer, texts)

    def _ids(self, sentences: list[str]) -> list[npt.NDArray[np.uint32]]:
        encodings = self._tokenizer.encode_batch_fast(sentences, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]


def truncated_lengths(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """Lengths after removing tokens one by one from the longer part, and from B at a tie (_truncate_seq_pair)."""
    while length_a + length_b > room:
        if length_a > length_b:
            length_a -= 1
        else:
            length_b -= 1
    return length_a, length_b
