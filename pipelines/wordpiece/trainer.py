"""Train a WordPiece vocabulary from word counts: exact in size, byte-identical for any order of input.

The algorithm is the one behind the `tokenizers` WordPiece trainer: byte-pair merges on words spelt as a first
character and `##` continuations, always the most frequent pair next. (Google never released the trainer of BERT's own
vocabulary.) Counts are 64-bit, and ties go to the pair with the smaller ids, so nothing depends on hash order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.contract.errors import InputError
from pipelines.contract.schemas import CLS, CONTINUATION, MASK, PAD, SEP, SPECIAL_TOKENS, UNK
from pipelines.wordpiece.pair_table import PairTable

Layout = Literal["compact", "bert"]

_NUM_UNUSED, _NUM_UNUSED_BEFORE_UNK = 994, 99


def reserved_tokens(layout: Layout) -> list[str]:
    """The entries before the alphabet: the special tokens, and for `bert` the `[unused]` entries around them.

    `bert` is the beginning of the released uncased vocabulary (vocab.txt of uncased_L-12_H-768_A-12): [PAD] 0,
    [unused0] to [unused98] 1 to 99, [UNK] [CLS] [SEP] [MASK] 100 to 103, [unused99] to [unused993] 104 to 998. (The
    cased one has the special tokens at the same ids and 101 `[unused]` entries, counted from 1.)
    """
    if layout == "compact":
        return [*SPECIAL_TOKENS]
    unused = [f"[unused{number}]" for number in range(_NUM_UNUSED)]
    return [PAD, *unused[:_NUM_UNUSED_BEFORE_UNK], UNK, CLS, SEP, MASK, *unused[_NUM_UNUSED_BEFORE_UNK:]]


def train(
    words: pa.Array,
    counts: NDArray[np.int64],
    size: int,
    min_count: int = 2,
    alphabet_size: int = 1000,
    layout: Layout = "compact",
) -> list[str]:
    """Train a vocabulary of exactly `size` entries: reserved tokens, alphabet, then merges in order of merging.

    Args:
        words: Arrow `string` array of distinct words from BERT's pre-tokeniser.
        counts: int64 [words], how often each occurs.
        min_count: a pair rarer than this is not merged.
        alphabet_size: number of characters, the most frequent, that get an entry (ties: the smaller code point); as in
            `tokenizers`, the others are removed from the words that hold them.
        layout: which tokens are reserved, see `reserved_tokens`; they count in `size`.

    Raises:
        InputError: the corpus has too few characters or pairs for `size`, or `size` too little room for the reserved
            tokens and the alphabet.
    """
    if not len(words):
        raise InputError(
            "vocabulary: the training documents hold no word; check what the documents stage kept and rejected, and "
            "documents.sources, documents.languages and documents.heldout_share"
        )
    codes, word_offsets = _code_points(words)
    alphabet, num_characters = _alphabet(codes, word_offsets, counts, alphabet_size)
    keep = np.isin(codes, alphabet)
    kept_before = np.concatenate(([0], np.cumsum(keep)))
    loss = _Loss(num_characters, alphabet_size, _unk_share(kept_before[word_offsets], word_offsets, counts))
    word_offsets, codes = kept_before[word_offsets], codes[keep]

    starts = np.zeros(len(codes), np.bool_)
    starts[word_offsets[:-1][np.diff(word_offsets) > 0]] = True
    heads, tails = np.unique(codes[starts]), np.unique(codes[~starts])
    tokens = reserved_tokens(layout)
    num_reserved = len(tokens)
    # Every character can start a word at inference, so all of the alphabet is entered without ## as well.
    tokens += [chr(code) for code in np.union1d(alphabet, heads)]
    first_tail = len(tokens)
    tokens += [CONTINUATION + chr(code) for code in tails]
    if len(tokens) > size:
        raise InputError(
            f"vocabulary.size = {size}: reserved tokens ({num_reserved} with layout = {layout!r}) and alphabet alone "
            f"need {len(tokens)} entries; raise it, or lower vocabulary.alphabet_size, which makes more words [UNK]: "
            f"{loss.in_words}"
        )
    symbols = np.where(
        starts, num_reserved + np.searchsorted(alphabet, codes), first_tail + np.searchsorted(tails, codes)
    ).astype(np.int32)
    _merge_all(tokens, symbols, word_offsets.astype(np.int64), counts.astype(np.int64), size, min_count)
    if len(tokens) < size:
        raise InputError(
            f"vocabulary.size = {size}: the corpus gives only {len(tokens)} entries with "
            f"min_count = {min_count}; {loss.remedy}lower one of the two, or add text"
        )
    return tokens


@dataclass(frozen=True)
class _Loss:
    """What an alphabet leaves out: `unk_share` of all words have a character without an entry."""

    distinct_characters: int
    alphabet_size: int
    unk_share: float

    @property
    def in_words(self) -> str:
        entries = min(self.alphabet_size, self.distinct_characters)
        return (
            f"{entries:,} of {self.distinct_characters:,} different characters have an entry now, and "
            f"{self.unk_share:.1%} of the words are [UNK]"
        )

    @property
    def remedy(self) -> str:
        """If characters are left out, they are the entries to add first: a smaller size would omit them."""
        if self.distinct_characters <= self.alphabet_size:
            return ""
        return f"raise vocabulary.alphabet_size = {self.alphabet_size} first ({self.in_words}), "


def _unk_share(kept_before: NDArray[np.int64], offsets: NDArray[np.int64], counts: NDArray[np.int64]) -> float:
    """Share of words, by count, with a character that is not kept."""
    return float(counts[np.diff(kept_before) < np.diff(offsets)].sum() / max(counts.sum(), 1))


def _code_points(words: pa.Array) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Unicode code points of all words one after the other, and where each word's begin."""
    lengths = pc.utf8_length(words).to_numpy(zero_copy_only=False).astype(np.int64)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    text = "".join(words.to_pylist())
    return np.frombuffer(text.encode("utf-32-le"), np.uint32), offsets


def _alphabet(
    codes: NDArray[np.uint32], word_offsets: NDArray[np.int64], counts: NDArray[np.int64], alphabet_size: int
) -> tuple[NDArray[np.uint32], int]:
    """The most frequent characters, in code-point order, and how many different ones there are."""
    weights = np.repeat(counts, np.diff(word_offsets))
    characters, inverse = np.unique(codes, return_inverse=True)
    totals = np.zeros(len(characters), np.int64)
    np.add.at(totals, inverse, weights)
    most_frequent = np.lexsort((characters, -totals))[:alphabet_size]
    return np.sort(characters[most_frequent]), len(characters)


def _merge_all(
    tokens: list[str],
    symbols: NDArray[np.int32],
    word_offsets: NDArray[np.int64],
    counts: NDArray[np.int64],
    size: int,
    min_count: int,
) -> None:
    """Append merged tokens to `tokens` until there are `size`, or no pair is frequent enough."""
    ids = {token: index for index, token in enumerate(tokens)}
    pairs = PairTable(symbols, word_offsets, counts)
    while len(tokens) < size:
        left, right, count = pairs.pop_most_frequent()
        if count < max(min_count, 1):
            return
        token = tokens[left] + tokens[right].removeprefix(CONTINUATION)
        # Two merge paths can spell one token; then the pair becomes the id that exists.
        merged = ids.setdefault(token, len(tokens))
        if merged == len(tokens):
            tokens.append(token)
        pairs.merge(left, right, merged)
