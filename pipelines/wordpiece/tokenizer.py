"""WordPiece tokenisation of Arrow strings at memory speed, with ids equal to those of `BertTokenizerFast`.

BERT's tokeniser first splits at white space and around punctuation, and processes each piece independently of its
neighbours. So a text's ids are the ids of its chunks (see `chunk_edges`), one after the other, and each distinct
chunk is tokenised once. The table of chunks outlives the batch, so a worker soon sees few new ones. Words of plain
ASCII are split here; every other chunk goes to the `tokenizers` library, which remains the only authority on
Unicode: control characters, accents, CJK, exotic white space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.contract.schemas import CONTINUATION, UNK
from pipelines.wordpiece.added_tokens import TextsWithAddedTokens
from pipelines.wordpiece.chunk_table import ChunkTable
from pipelines.wordpiece.reference_tokenizer import MAX_CHARACTERS_PER_WORD, build_text_tokenizer
from pipelines.wordpiece.token_counts import ChunkCounts, TokenCounts, added
from pipelines.wordpiece.tokenizer_settings import AddedToken

_FNV_OFFSET, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_NOT_ONE = -1


@dataclass(frozen=True)
class TokenizedTexts:
    """Ids of many texts in one flat array. `input_ids`: int32 [tokens]; `offsets`: int64 [texts + 1]."""

    input_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]


class WordPieceTokenizer:
    """Tokenise Arrow string arrays; keeps its table of chunks from call to call.

    A literal "[MASK]" in a text is text, as in the released code (tokenization.py). The arguments are the entries and
    added tokens by id, and the fields of `TokenizerSettings`.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        lowercase: bool,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
        added_tokens: Sequence[AddedToken] = (),
    ):
        outside = {token.id for token in added_tokens if not token.is_entry}
        entries = ["" if index in outside else token for index, token in enumerate(vocabulary)]
        self._pieces = _PieceTable(entries)
        self._judge = build_text_tokenizer(vocabulary, lowercase, strip_accents, tokenize_chinese_chars, added_tokens)
        self._table = ChunkTable(lowercase)
        self._learned = _IdLists()
        is_continuation = np.array([token.startswith(CONTINUATION) for token in entries])
        self._counts = ChunkCounts(vocabulary.index(UNK), is_continuation)
        self._added = TextsWithAddedTokens(added_tokens, self._judge, vocabulary.index(UNK), is_continuation)

    def tokenize(self, texts: pa.Array) -> TokenizedTexts:
        """Ids of each text without [CLS] and [SEP].

        Args:
            texts: Arrow `string` array without nulls, [texts].
        """
        return self.tokenize_and_count(texts)[0]

    def tokenize_and_count(self, texts: pa.Array) -> tuple[TokenizedTexts, TokenCounts]:
        """As `tokenize`, with counts of what was kept and lost."""
        apart = self._added.take(texts)
        chunks, chunk_offsets = self._chunks_of(apart.others)
        input_ids, offsets = apart.put_back(*self._learned.gather(chunks, chunk_offsets))
        return TokenizedTexts(input_ids, offsets), added([self._counts.of(chunks), *apart.counts])

    def count(self, texts: pa.Array, occurrences: NDArray[np.int64]) -> TokenCounts:
        """Counts over texts without added tokens, weighted by how often each occurs.

        Args:
            texts: Arrow `string` array without nulls, [texts].
            occurrences: int64 [texts].
        """
        chunks, chunk_offsets = self._chunks_of(texts)
        return self._counts.weighted(chunks, np.repeat(occurrences, np.diff(chunk_offsets)))

    def _chunks_of(self, texts: pa.Array) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The chunks of texts as numbers whose ids are known, and where each text's begin."""
        self._table.trim()
        self._learned.truncate(self._table.size)
        self._counts.truncate(self._table.size)
        chunks = self._table.chunk_numbers(texts)
        self._learn()
        return chunks

    def _learn(self) -> None:
        """Find the ids of the chunks that are new: plain ASCII words here, all others by the `tokenizers` library."""
        table, start, stop = self._table, len(self._learned), self._table.size
        if start == stop:
            return
        ids, counts = self._pieces.split(table, start, stop)
        foreign = np.flatnonzero(counts < 0)
        if len(foreign):
            keys = [table.key(start + number) for number in foreign.tolist()]
            encodings = self._judge.encode_batch_fast(keys, add_special_tokens=False)
            judged = [encoding.ids for encoding in encodings]
            counts[foreign] = [len(one) for one in judged]
            # Before a foreign chunk stand the ids of the plain chunks before it, which `ids` holds without gaps.
            plain_counts = counts.copy()
            plain_counts[foreign] = 0
            places = np.cumsum(plain_counts)[foreign]
            flat = np.fromiter((index for one in judged for index in one), np.int32, int(counts[foreign].sum()))
            ids = np.insert(ids, np.repeat(places, counts[foreign]), flat)
        self._learned.append(ids, counts)
        self._counts.append_plain(np.diff(table.key_offsets[start : stop + 1]), ids, counts)
        if len(foreign):
            self._counts.correct(start + foreign, keys, judged, self._judge)


class _IdLists:
    """The ids of numbered chunks. Most have a single id, which is also stored in an array indexed by the number."""

    def __init__(self) -> None:
        self._size = 0
        self._only_id = np.zeros(1 << 10, np.int32)
        self._offsets = np.zeros(1 + (1 << 10), np.int64)
        self._ids = np.zeros(1 << 10, np.int32)

    def __len__(self) -> int:
        return self._size

    def append(self, ids: NDArray[np.int32], counts: NDArray[np.int64]) -> None:
        """Add chunks: their ids one after the other, and how many each has."""
        first, start, size = int(self._offsets[self._size]), self._size, self._size + len(counts)
        while size > len(self._only_id):
            self._only_id = np.resize(self._only_id, 2 * len(self._only_id))
            self._offsets = np.resize(self._offsets, 1 + len(self._only_id))
        while first + len(ids) > len(self._ids):
            self._ids = np.resize(self._ids, 2 * len(self._ids))
        ends = first + np.cumsum(counts)
        self._ids[first : first + len(ids)] = ids
        self._offsets[start + 1 : size + 1] = ends
        # If a chunk has no ids, `ends - 1` is an earlier chunk's place, which `where` ignores.
        self._only_id[start:size] = np.where(counts == 1, self._ids[ends - 1], _NOT_ONE)
        self._size = size

    def truncate(self, size: int) -> None:
        """Forget the chunks from number `size` on."""
        self._size = min(self._size, size)

    def gather(
        self, chunks: NDArray[np.uint32], chunk_offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The ids of the chunks of many texts one after the other, and where each text's begin."""
        return _gather_ids(chunks, chunk_offsets, self._only_id, self._ids, self._offsets)


class _PieceTable:
    """The vocabulary's ASCII entries by their bytes, for greedy longest-match splitting (tokenization.py)."""

    def __init__(self, vocabulary: Sequence[str]):
        pieces = [
            (token.removeprefix(CONTINUATION).encode(), token.startswith(CONTINUATION), index)
            for index, token in enumerate(vocabulary)
            if token.isascii() and token not in ("", CONTINUATION)
        ]
        self._unk_id = vocabulary.index(UNK)
        self._lengths = np.zeros(len(vocabulary), np.int32)
        self._bytes = np.frombuffer(b"".join(raw for raw, _, _ in pieces), np.uint8)
        self._offsets = np.zeros(len(vocabulary), np.int64)
        self._is_continuation = np.zeros(len(vocabulary), np.bool_)
        self._slots = np.full(1 << (4 * len(vocabulary)).bit_length(), -1, np.int32)
        written = 0
        for raw, is_continuation, index in pieces:
            self._offsets[index], self._lengths[index] = written, len(raw)
            self._is_continuation[index] = is_continuation
            written += len(raw)
        self._longest = max((len(raw) for raw, _, _ in pieces), default=0)
        _insert_pieces(self._slots, self._bytes, self._offsets, self._lengths, self._is_continuation)

    def split(self, table: ChunkTable, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of the plain ASCII chunks one after the other, and how many each chunk has: -1 if it is not plain."""
        return _split_plain_chunks(
            table.key_bytes,
            table.key_offsets,
            start,
            stop,
            self._slots,
            self._bytes,
            self._offsets,
            self._lengths,
            self._is_continuation,
            self._longest,
            self._unk_id,
        )


@numba.njit(cache=True, nogil=True)
def _insert_pieces(
    slots: NDArray[np.int32],
    piece_bytes: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    lengths: NDArray[np.int32],
    is_continuation: NDArray[np.bool_],
) -> None:
    last_slot = np.uint64(len(slots) - 1)
    for piece in range(len(lengths)):
        if lengths[piece] == 0:
            continue
        piece_hash = _FNV_OFFSET + np.uint64(is_continuation[piece])
        for index in range(offsets[piece], offsets[piece] + lengths[piece]):
            piece_hash = (piece_hash ^ np.uint64(piece_bytes[index])) * _FNV_PRIME
        slot = (piece_hash ^ (piece_hash >> np.uint64(29))) & last_slot
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & last_slot
        slots[slot] = piece


@numba.njit(cache=True, nogil=True)
def _split_plain_chunks(
    key_bytes: NDArray[np.uint8],
    key_offsets: NDArray[np.int64],
    first_chunk: int,
    last_chunk: int,
    slots: NDArray[np.int32],
    piece_bytes: NDArray[np.uint8],
    piece_offsets: NDArray[np.int64],
    piece_lengths: NDArray[np.int32],
    is_continuation: NDArray[np.bool_],
    longest_piece: int,
    unk_id: int,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Split each chunk of printable ASCII into the longest pieces, from left to right; [UNK] if none fits."""
    last_slot = np.uint64(len(slots) - 1)
    counts = np.empty(last_chunk - first_chunk, np.int64)
    ids = np.empty(key_offsets[last_chunk] - key_offsets[first_chunk], np.int32)
    written = 0
    for chunk in range(first_chunk, last_chunk):
        start, stop = key_offsets[chunk], key_offsets[chunk + 1]
        # Leave chunks that are not printable ASCII to the library.
        plain = True
        for position in range(start, stop):
            plain &= 32 < key_bytes[position] < 127
        if not plain:
            counts[chunk - first_chunk] = -1
            continue
        # Take the longest piece at each position; words that are too long are not split.
        before = written
        position = start if stop - start <= MAX_CHARACTERS_PER_WORD else stop
        while position < stop:
            best, best_stop = -1, position
            piece_hash = _FNV_OFFSET + np.uint64(position > start)
            for end in range(position, min(stop, position + longest_piece)):
                piece_hash = (piece_hash ^ np.uint64(key_bytes[end])) * _FNV_PRIME
                slot = (piece_hash ^ (piece_hash >> np.uint64(29))) & last_slot
                while slots[slot] >= 0:
                    piece = slots[slot]
                    length = end + 1 - position
                    if piece_lengths[piece] == length and is_continuation[piece] == (position > start):
                        base = piece_offsets[piece]
                        index = 0
                        while index < length and piece_bytes[base + index] == key_bytes[position + index]:
                            index += 1
                        if index == length:
                            best, best_stop = piece, end + 1
                            break
                    slot = (slot + np.uint64(1)) & last_slot
            if best < 0:
                break
            ids[written] = best
            written += 1
            position = best_stop
        # Without a match for the complete word, replace its pieces by [UNK].
        if position < stop or written == before:
            written = before + 1
            ids[before] = unk_id
        counts[chunk - first_chunk] = written - before
    return ids[:written].copy(), counts


@numba.njit(cache=True, nogil=True)
def _gather_ids(
    chunks: NDArray[np.uint32],
    chunk_offsets: NDArray[np.int64],
    only_id: NDArray[np.int32],
    ids: NDArray[np.int32],
    id_offsets: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Concatenate the ids of the chunks."""
    total = 0
    for chunk in chunks:
        total += 1 if only_id[chunk] >= 0 else id_offsets[chunk + 1] - id_offsets[chunk]
    input_ids = np.empty(total, np.int32)
    offsets = np.zeros(len(chunk_offsets), np.int64)
    written = 0
    for text in range(len(chunk_offsets) - 1):
        for index in range(chunk_offsets[text], chunk_offsets[text + 1]):
            chunk = chunks[index]
            if only_id[chunk] >= 0:
                input_ids[written] = only_id[chunk]
                written += 1
                continue
            for source in range(id_offsets[chunk], id_offsets[chunk + 1]):
                input_ids[written] = ids[source]
                written += 1
        offsets[text + 1] = written
    return input_ids, offsets
