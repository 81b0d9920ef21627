"""What is lost when rows are cut from documents: counts that add up over shards."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.examples.planned_rows import PlannedRows, TokenizedDocuments
from pipelines.statistics.preprocessing import TokenLosses

LOSSES = tuple(TokenLosses.model_fields)


def losses_of(
    documents: TokenizedDocuments,
    sources: NDArray[np.int64],
    rows: PlannedRows,
    passes: int,
    max_seq_length: int,
    times: NDArray[np.int64] | None = None,
) -> dict[str, int]:
    """`LOSSES` of one shard's rows.

    A random segment B repeats text of another document, so its tokens do not count as kept.

    Args:
        sources: int64 [documents]; two documents that are pieces of one text have the same number.
        rows: all of `passes` passes, or of `times` (int64 [documents]) reads of the documents.
    """
    lengths = np.diff(documents.sentence_offsets)
    room = max_seq_length - (3 if rows.has_segment_b else 2)
    piece_lengths = rows.pieces[:, 1] - rows.pieces[:, 0]
    kept, same = int(piece_lengths.sum()), 0
    if rows.has_segment_b:
        is_random = rows.next_sentence_label == 1
        kept -= int(piece_lengths[1::2][is_random].sum())
        same = _from_the_same_text(documents, sources, rows.pieces.reshape(-1, 4)[is_random])
    to_place = passes * len(documents.input_ids)
    if times is not None:
        tokens = np.diff(documents.sentence_offsets[documents.document_offsets])
        to_place = int(np.dot(times, tokens))
    counts = (len(lengths), int((lengths > room).sum()), to_place, to_place - kept, same)
    return dict(zip(LOSSES, counts, strict=True))


def _from_the_same_text(documents: TokenizedDocuments, sources: NDArray[np.int64], pairs: NDArray[np.int64]) -> int:
    """How many pairs (int64 [pairs, 4], ranges of A and B) come from two documents of one text."""
    if len(np.unique(sources)) == len(sources):
        return 0
    first_tokens = documents.sentence_offsets[documents.document_offsets]
    # A segment that was cut to nothing may end where the next document begins, so its first token is looked up.
    of_a, of_b = (np.searchsorted(first_tokens, pairs[:, column], side="right") - 1 for column in (0, 2))
    return int((sources[of_a] == sources[of_b]).sum())
