"""Texts that may hold added tokens, such as "<entity>": the `tokenizers` library gets them uncut.

An added token is found before a text is split into words, also inside a word and across punctuation, so such a text
has no independent chunks. The search here may name a text too many, never one too few: the library decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipelines.wordpiece.token_counts import TokenCounts
from pipelines.wordpiece.tokenizer_settings import AddedToken

_NOT_PRINTABLE_ASCII = "[^ -~]"
_SPACES = str.maketrans("", "", " \t\r\n")


@dataclass(frozen=True)
class TextsApart:
    """Texts of which some were tokenised by the library.

    others: all texts, [texts], those that were taken replaced by "". places: int64 [taken]. ids: those of each text
    taken. counts: those of the texts taken, in no or one entry.
    """

    others: pa.Array
    places: NDArray[np.int64]
    ids: list[list[int]]
    counts: list[TokenCounts]

    def put_back(
        self, input_ids: NDArray[np.int32], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Insert the ids of the texts taken into those of the others: int32 [tokens], int64 [texts + 1]."""
        if not len(self.places):
            return input_ids, offsets
        sizes = np.zeros(len(offsets) - 1, np.int64)
        sizes[self.places] = [len(one) for one in self.ids]
        flat = np.fromiter((index for one in self.ids for index in one), np.int32, int(sizes.sum()))
        together = np.insert(input_ids, np.repeat(offsets[self.places], sizes[self.places]), flat)
        return together, offsets + np.concatenate(([0], np.cumsum(sizes)))


class TextsWithAddedTokens:
    """Find and tokenise the texts that may hold added tokens."""

    def __init__(self, tokens: Sequence[AddedToken], judge: Tokenizer, unk_id: int, is_continuation: NDArray[np.bool_]):
        """`judge`: the library's tokenizer, which reads these tokens; `is_continuation`: bool [vocabulary]."""
        self._judge, self._unk_id, self._is_continuation = judge, unk_id, is_continuation
        normalize = judge.normalizer.normalize_str
        self._normalized = sorted({normalize(token.content) for token in tokens if token.normalized})
        self._verbatim = _any_of(sorted({token.content for token in tokens if not token.normalized}))
        self._in_normalized = _any_of(self._normalized)

    def take(self, texts: pa.Array) -> TextsApart:
        """Tokenise those of the texts that may hold an added token."""
        places = self._find(texts)
        if not len(places):
            return TextsApart(texts, places, [], [])
        taken = texts.take(pa.array(places)).to_pylist()
        encodings = self._judge.encode_batch(taken, add_special_tokens=False)
        counts = TokenCounts()
        for text, encoding in zip(taken, encodings, strict=True):
            lost = sum(
                end - start
                for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
                if index == self._unk_id
            )
            tokens, ids = len(encoding.ids), np.array(encoding.ids, np.int64)
            counts = TokenCounts(
                words=counts.words + tokens - int(self._is_continuation[ids].sum()),
                tokens=counts.tokens + tokens,
                unk=counts.unk + int((ids == self._unk_id).sum()),
                characters=counts.characters + len(text.translate(_SPACES)),
                unk_characters=counts.unk_characters + lost,
            )
        mask = np.zeros(len(texts), np.bool_)
        mask[places] = True
        others = pc.if_else(pa.array(mask), pa.scalar("", pa.string()), texts)
        return TextsApart(others, places, [encoding.ids for encoding in encodings], [counts])

    def _find(self, texts: pa.Array) -> NDArray[np.int64]:
        found = np.zeros(len(texts), np.bool_)
        if self._verbatim:
            found |= _matches(texts, self._verbatim)
        if self._in_normalized:
            # Printable ASCII is changed by nothing but lower-casing.
            found |= _matches(texts, self._in_normalized, ignore_case=True)
            normalize = self._judge.normalizer.normalize_str
            for place in np.flatnonzero(_matches(texts, _NOT_PRINTABLE_ASCII) & ~found).tolist():
                text = normalize(texts[place].as_py())
                found[place] = any(content in text for content in self._normalized)
        return np.flatnonzero(found)


def _any_of(contents: Sequence[str]) -> str:
    return "|".join(map(re.escape, contents))


def _matches(texts: pa.Array, pattern: str, ignore_case: bool = False) -> NDArray[np.bool_]:
    matches = pc.match_substring_regex(texts, pattern=pattern, ignore_case=ignore_case)
    result: NDArray[np.bool_] = matches.to_numpy(zero_copy_only=False)
    return result
