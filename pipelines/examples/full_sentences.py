"""Rows of full sentences without the next-sentence task ("full-sentences" of Liu et al., 2019, section 4.2).

Sentences are taken one after the other, documents in random order, until the next one would make the row longer than
`max_seq_length`; a row that continues into another document gets an extra [SEP] between the two. A sentence longer than
a row is cut into pieces, so every token of every document appears once per pass. No short sequences are drawn: the
released BERT's `short_seq_prob` has no counterpart there.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from pipelines.examples.planned_rows import PlannedRows, TokenizedDocuments, keys_of_rows
from pipelines.seeding import derive_keys

_OUTER_SPECIAL_TOKENS = 2
"""[CLS] at the front, [SEP] at the end."""


def plan_full_sentences(
    documents: TokenizedDocuments,
    order_key: np.uint64,
    mask_key: np.uint64,
    max_seq_length: int,
    is_read: NDArray[np.bool_] | None = None,
) -> PlannedRows:
    """Cut all documents into rows once (one pass).

    Args:
        order_key: the pass's key; documents are sorted by the numbers drawn from it with their own keys.
        mask_key: key of the pass's masks; a row draws from the sub-stream of the document and the token it begins at.
        is_read: [documents], which documents to cut; None cuts all.
    """
    words = derive_keys(np.uint64(order_key), documents.document_keys)
    order = np.argsort(words, kind="stable")
    if is_read is not None:
        order = order[is_read[order]]
    pieces, offsets = _plan(
        documents.sentence_offsets, documents.document_offsets, order, max_seq_length - _OUTER_SPECIAL_TOKENS
    )
    first_tokens = pieces[offsets[:-1], 0]
    document_starts = documents.sentence_offsets[documents.document_offsets]
    begins_in = np.searchsorted(document_starts, first_tokens, side="right") - 1
    keys = keys_of_rows(
        np.uint64(mask_key), documents.document_keys, begins_in, first_tokens - document_starts[begins_in]
    )
    return PlannedRows(pieces, offsets, keys, np.zeros(len(keys), np.uint8), has_segment_b=False)


@numba.njit(cache=True, nogil=True)
def _plan(
    sentence_offsets: NDArray[np.int64], document_offsets: NDArray[np.int64], order: NDArray[np.int64], capacity: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # A sentence makes at most one piece, and one more for each full row that it is cut into.
    most = len(sentence_offsets) - 1 + sentence_offsets[-1] // capacity
    pieces = np.empty((most, 2), np.int64)
    offsets = np.zeros(most + 1, np.int64)
    num_pieces = num_rows = used = 0
    for document in order:
        goes_on = False
        for sentence in range(document_offsets[document], document_offsets[document + 1]):
            start, end = sentence_offsets[sentence], sentence_offsets[sentence + 1]
            while start < end:
                # Close a row that has no room for the sentence and a separator before it.
                separator = 1 if used > 0 and not goes_on else 0
                if used > 0 and used + separator + end - start > capacity:
                    num_rows += 1
                    offsets[num_rows] = num_pieces
                    used, goes_on = 0, False
                    continue
                # Take the sentence, or as much of it as an empty row holds.
                taken = min(end - start, capacity)
                if goes_on:
                    pieces[num_pieces - 1, 1] += taken
                else:
                    pieces[num_pieces, 0], pieces[num_pieces, 1] = start, start + taken
                    num_pieces += 1
                    goes_on = True
                used += separator + taken
                start += taken
    if used > 0:
        num_rows += 1
        offsets[num_rows] = num_pieces
    return pieces[:num_pieces].copy(), offsets[: num_rows + 1].copy()
