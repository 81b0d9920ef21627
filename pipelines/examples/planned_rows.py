"""Shared by both ways of cutting documents: the tokens of a shard, and rows planned as ranges of them.

A document is a run of sentences in one flat array of ids, so rows are planned without copying tokens: a row is
`[CLS]`, then pieces, each a range of that array with `[SEP]` after it. A next-sentence pair has two pieces, a row of
full sentences has one for each document that it uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from pipelines.seeding import derive_key


@dataclass(frozen=True)
class TokenizedDocuments:
    """The documents of one shard, as flat arrays without empty sentences and empty documents.

    `input_ids`: int32 [tokens]; `sentence_offsets`: int64 [sentences + 1], into `input_ids`;
    `document_offsets`: int64 [documents + 1], into the sentences; `document_keys`: uint64 [documents], from the ids of
    the documents, so that a document's random choices do not depend on its place.
    """

    input_ids: NDArray[np.int32]
    sentence_offsets: NDArray[np.int64]
    document_offsets: NDArray[np.int64]
    document_keys: NDArray[np.uint64]

    def take(self, is_taken: NDArray[np.bool_]) -> TokenizedDocuments:
        """Some of the documents (bool [documents]), in their order."""
        sentences_of, lengths = np.diff(self.document_offsets), np.diff(self.sentence_offsets)
        has_sentence = np.repeat(is_taken, sentences_of)
        return TokenizedDocuments(
            input_ids=self.input_ids[np.repeat(has_sentence, lengths)],
            sentence_offsets=np.concatenate(([0], np.cumsum(lengths[has_sentence]))),
            document_offsets=np.concatenate(([0], np.cumsum(sentences_of[is_taken]))),
            document_keys=self.document_keys[is_taken],
        )


@dataclass(frozen=True)
class PlannedRows:
    """Rows to be written out.

    `pieces`: int64 [pieces, 2], ranges of `TokenizedDocuments.input_ids`; `offsets`: int64 [rows + 1], into the pieces;
    `keys`: uint64 [rows], of the streams that masks are drawn from; `next_sentence_label`: uint8 [rows];
    `has_segment_b`: whether the second piece of every row is a second segment.
    """

    pieces: NDArray[np.int64]
    offsets: NDArray[np.int64]
    keys: NDArray[np.uint64]
    next_sentence_label: NDArray[np.uint8]
    has_segment_b: bool

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, special ones counted: int64 [rows]."""
        before = np.concatenate(([0], np.cumsum(self.pieces[:, 1] - self.pieces[:, 0] + 1)))
        return 1 + before[self.offsets[1:]] - before[self.offsets[:-1]]

    def take(self, rows: NDArray[np.int64]) -> PlannedRows:
        """Some of the rows, in the order given."""
        starts = self.offsets[rows]
        counts = self.offsets[rows + 1] - starts
        offsets = np.concatenate(([0], np.cumsum(counts)))
        pieces = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
        return PlannedRows(
            self.pieces[pieces], offsets, self.keys[rows], self.next_sentence_label[rows], self.has_segment_b
        )


def join_rows(plans: Sequence[PlannedRows]) -> PlannedRows:
    """The rows of several plans of the same documents, one plan after the other."""
    bases = np.cumsum([0] + [len(plan.pieces) for plan in plans])
    offsets = [plan.offsets[:-1] + base for plan, base in zip(plans, bases[:-1], strict=True)]
    return PlannedRows(
        np.concatenate([plan.pieces for plan in plans]),
        np.concatenate([*offsets, bases[-1:]]),
        np.concatenate([plan.keys for plan in plans]),
        np.concatenate([plan.next_sentence_label for plan in plans]),
        plans[0].has_segment_b,
    )


@numba.njit(cache=True, nogil=True)
def keys_of_rows(
    key: np.uint64, document_keys: NDArray[np.uint64], documents: NDArray[np.int64], numbers: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Stream keys of rows, each named by a document and a number that no other row of the document has."""
    keys = np.empty(len(documents), np.uint64)
    for row in range(len(documents)):
        keys[row] = derive_key(derive_key(key, document_keys[documents[row]]), numbers[row])
    return keys
