"""Next-sentence pairs, cut as `create_instances_from_document` of the released code (create_pretraining_data.py) does.

A segment is a range of the documents' flat array of ids, and truncation moves the range's ends. Faithful in every
clause: the short-sequence draw once per document and pass, A's end drawn inside the chunk, random next in half of the
cases and wherever the chunk is one sentence, unused sentences put back, truncation of the longer side at a random end.

Two differences, both about labels. The random document is never the document itself. And if a shard holds no other
document, B is the true continuation with that label; the released code would call the same document's text "random".
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from pipelines.examples.planned_rows import PlannedRows, TokenizedDocuments, keys_of_rows
from pipelines.seeding import derive_key, next_below, next_uniform

NUM_SPECIAL_TOKENS = 3
"""[CLS] A [SEP] B [SEP]."""

PAIR_COLUMNS = ("a_start", "a_end", "b_start", "b_end", "is_random_next", "document", "number")
A_START, A_END, B_START, B_END, IS_RANDOM_NEXT, DOCUMENT, NUMBER = range(len(PAIR_COLUMNS))


def plan_pairs(
    documents: TokenizedDocuments,
    key: np.uint64,
    max_seq_length: int,
    short_seq_prob: float,
    times: NDArray[np.int64] | None = None,
    number: int = 0,
) -> NDArray[np.int64]:
    """Cut all documents into pairs once (one pass).

    Args:
        key: stream key of the pass; each document draws from the sub-stream of its own key.
        times: int64 [documents], how often each document is read; None reads all equally often.
        number: of this read; documents that are read more often than this are cut. A random document is drawn in
            proportion to `times`, so that random segments have the mix of the others.

    Returns:
        int64 [pairs, 7]: ranges of A and B in `input_ids`, `is_random_next`, the document's index, and the pair's
        number within its document.
    """
    num_documents = len(documents.document_keys)
    is_read, times_before = np.ones(num_documents, np.bool_), np.empty(0, np.int64)
    if times is not None and (times != times[:1]).any():
        is_read, times_before = times > number, np.concatenate(([0], np.cumsum(times)))
    return _plan_pairs(
        documents.sentence_offsets,
        documents.document_offsets,
        documents.document_keys,
        is_read,
        times_before,
        np.uint64(key),
        max_seq_length - NUM_SPECIAL_TOKENS,
        short_seq_prob,
    )


def rows_of_pairs(documents: TokenizedDocuments, pairs: NDArray[np.int64], mask_key: np.uint64) -> PlannedRows:
    """The rows `[CLS] A [SEP] B [SEP]` of planned pairs.

    Args:
        pairs: int64 [rows, 7] of `plan_pairs`.
        mask_key: key of the pass's masks; a row draws from the sub-stream of its document and number, so its masks do
            not depend on the order of rows.
    """
    return PlannedRows(
        pieces=pairs[:, A_START : B_END + 1].reshape(-1, 2),
        offsets=2 * np.arange(len(pairs) + 1),
        keys=keys_of_rows(np.uint64(mask_key), documents.document_keys, pairs[:, DOCUMENT], pairs[:, NUMBER]),
        next_sentence_label=pairs[:, IS_RANDOM_NEXT].astype(np.uint8),
        has_segment_b=True,
    )


@numba.njit(cache=True, nogil=True)
def _plan_pairs(
    sentence_offsets: NDArray[np.int64],
    document_offsets: NDArray[np.int64],
    document_keys: NDArray[np.uint64],
    is_read: NDArray[np.bool_],
    times_before: NDArray[np.int64],
    key: np.uint64,
    max_num_tokens: int,
    short_seq_prob: float,
) -> NDArray[np.int64]:
    num_documents = len(document_offsets) - 1
    # Each pair uses up at least one sentence, so the sentences bound the number of pairs.
    pairs = np.empty((len(sentence_offsets) - 1, 7), np.int64)
    num_pairs = 0
    stream = np.zeros(2, np.uint64)
    for document in range(num_documents):
        if not is_read[document]:
            continue
        stream[0], stream[1] = derive_key(key, document_keys[document]), np.uint64(0)
        # Draw the document's target length, sometimes a short one.
        target_seq_length = np.int64(max_num_tokens)
        if next_uniform(stream) < short_seq_prob:
            target_seq_length = 2 + next_below(stream, max_num_tokens - 1)
        stop = document_offsets[document + 1]
        chunk_start = sentence = document_offsets[document]
        number = 0
        while sentence < stop:
            # Extend the chunk until it reaches the target or the document ends, then draw the end of A.
            chunk_tokens = sentence_offsets[sentence + 1] - sentence_offsets[chunk_start]
            if sentence < stop - 1 and chunk_tokens < target_seq_length:
                sentence += 1
                continue
            chunk_size = sentence + 1 - chunk_start
            a_end = chunk_start + 1 + (next_below(stream, chunk_size - 1) if chunk_size >= 2 else 0)
            wants_random = chunk_size == 1 or next_uniform(stream) < 0.5
            next_sentence = sentence + 1
            # B from another document, from a random sentence on, or the rest of the chunk.
            if wants_random and num_documents > 1:
                is_random = 1
                target_b_length = target_seq_length - (sentence_offsets[a_end] - sentence_offsets[chunk_start])
                other = _other_document(stream, times_before, document, num_documents)
                first, last = document_offsets[other], document_offsets[other + 1]
                b_start = first + next_below(stream, last - first)
                b_end = _end_of_segment(sentence_offsets, b_start, last, target_b_length)
                next_sentence = a_end
            else:
                is_random = 0
                b_start, b_end = a_end, sentence + 1
                if chunk_size == 1:
                    # The only document of its shard, and a sentence that fills the chunk: its true continuation.
                    target_b_length = target_seq_length - chunk_tokens
                    b_end = _end_of_segment(sentence_offsets, b_start, stop, target_b_length)
                    next_sentence = b_end
            # Write the pair; the next chunk begins after the last sentence used.
            if b_end > b_start:
                pair = pairs[num_pairs]
                pair[0], pair[1] = sentence_offsets[chunk_start], sentence_offsets[a_end]
                pair[2], pair[3] = sentence_offsets[b_start], sentence_offsets[b_end]
                _truncate(pair, max_num_tokens, stream)
                pair[4], pair[5], pair[6] = is_random, document, number
                num_pairs += 1
                number += 1
            chunk_start = sentence = next_sentence
    return pairs[:num_pairs].copy()


@numba.njit(cache=True, nogil=True)
def _other_document(
    stream: NDArray[np.uint64], times_before: NDArray[np.int64], document: int, num_documents: int
) -> int:
    """Draw another document, each in proportion to how often it is read; no `times_before` if all are equally often."""
    if len(times_before) == 0:
        other = next_below(stream, num_documents - 1)
        return int(other + (other >= document))
    own = times_before[document + 1] - times_before[document]
    drawn = next_below(stream, times_before[-1] - own)
    if drawn >= times_before[document]:
        drawn += own
    return int(np.searchsorted(times_before, drawn, side="right")) - 1


@numba.njit(cache=True, nogil=True)
def _end_of_segment(sentence_offsets: NDArray[np.int64], start: int, stop: int, target_tokens: int) -> int:
    """The sentence after a segment that starts at `start` and takes sentences until it has `target_tokens`."""
    end = start
    while end < stop:
        end += 1
        if sentence_offsets[end] - sentence_offsets[start] >= target_tokens:
            break
    return end


@numba.njit(cache=True, nogil=True)
def _truncate(pair: NDArray[np.int64], max_num_tokens: int, stream: NDArray[np.uint64]) -> None:
    """Take tokens off the longer segment, at its front or back with equal chance, until both fit."""
    while True:
        a_length, b_length = pair[1] - pair[0], pair[3] - pair[2]
        if a_length + b_length <= max_num_tokens:
            return
        front = next_uniform(stream) < 0.5
        if a_length > b_length:
            if front:
                pair[0] += 1
            else:
                pair[1] -= 1
        elif front:
            pair[2] += 1
        else:
            pair[3] -= 1
