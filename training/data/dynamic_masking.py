"""Masks drawn while reading, new in each epoch (Liu et al., 2019, section 4.1), by the rule of `pipelines.examples`.

Every choice is a hash of (stream, row, position), independent of batch, rank and thread. So the masks of a row in an
epoch are the same for any number of ranks and after any resume.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.contract.errors import InputError
from pipelines.contract.schemas import CLS, CONTINUATION, MASK, SEP, UNMASKED, WHOLE_WORDS
from training.data.ordering import IntArray, keyed_seed
from training.data.rows import Ragged
from training.data.spans import Draw, Spans, choose_spans
from training.data.whole_words import choose_words, find_words
from training.settings.optimization import SPANS
from training.settings.pretraining import BERT_SHARES, MaskSharesConfig

KeyArray = npt.NDArray[np.uint64]
Ids = npt.NDArray[Any]

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), with the constants of pipelines/seeding.py, which GPU nodes lack.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

# A row's stream has parts by purpose; the first numbers, one per position (below 2**16), order the choice.
_FATE, _REPLACEMENT, _SPAN_START, _SPAN_LENGTH = 1 << 16, 2 << 16, 3 << 16, 4 << 16
# Bits of a sort key: of words the row of the group, the random number, the position; of tokens the last two.
_ROW_SHIFT, _SCORE_SHIFT = np.uint64(48), np.uint64(16)
_SCORE_BITS_DROPPED = np.uint64(33)
_SCORE_MASK = np.uint64(2**64 - 2**33)
_POSITION_MASK, _LAST = np.uint64(0xFFFF), np.uint64(0xFFFFFFFFFFFFFFFF)
GROUP_ROWS = 256
"""Rows sorted at a time, so that the keys stay in cache; the result does not depend on it."""


def _mix(values: KeyArray) -> KeyArray:
    """The values, mixed in place."""
    shifted = values >> np.uint64(30)
    values ^= shifted
    values *= _MIX_1
    np.right_shift(values, np.uint64(27), out=shifted)
    values ^= shifted
    values *= _MIX_2
    np.right_shift(values, np.uint64(31), out=shifted)
    values ^= shifted
    return values


def _draw(keys: KeyArray, counters: IntArray | KeyArray) -> KeyArray:
    """The number at each counter of each key's stream."""
    return _mix(keys + (counters.astype(np.uint64, copy=False) + np.uint64(1)) * _GAMMA)


def _of_53_bits(share: float) -> np.uint64:
    """The first of 2**53 numbers that is not below this share of them: `number < result` compares without rounding."""
    return np.uint64(math.ceil(share * 2**53))


def row_keys(rows: IntArray, *stream: int | str) -> KeyArray:
    """A key for each row number of a data set; `stream` identifies epoch and data set."""
    return _draw(np.full(len(rows), keyed_seed("masks", *stream), dtype=np.uint64), rows)


def _sort_keys(keys: KeyArray, length: int) -> KeyArray:
    """The number at each of `length` positions of each stream, followed by the position: [keys, length]."""
    positions = np.arange(length, dtype=np.uint64)
    numbers = _draw(keys[:, None], positions)
    # The 31 highest bits stay where they are: only the order counts.
    numbers &= _SCORE_MASK
    numbers |= positions
    return numbers


@dataclass(frozen=True)
class DynamicMasking:
    """The rule of pipelines.examples.masking.MaskingRules.

    continues: bool [vocabulary], true for tokens that continue a word; None masks single tokens.
    spans: mask spans of words, and replace all tokens of a span in the same way (SpanBERT).
    shares: what becomes of the predicted tokens.
    """

    masked_lm_prob: float
    max_predictions_per_seq: int
    cls_id: int
    sep_id: int
    mask_id: int
    vocab_size: int
    continues: npt.NDArray[np.bool_] | None = field(default=None, compare=False)
    shares: MaskSharesConfig = BERT_SHARES
    spans: bool = False

    @property
    def predicts_in_every_row(self) -> bool:
        """Whether a row has a token to mask if it has any; whole words may all be too long."""
        return self.continues is None

    def num_predictions(self, input_ids: Ids, offsets: IntArray, keys: KeyArray) -> IntArray:
        """Number of predicted tokens of each row, which depends on its key only if words are masked together.

        Args:
            input_ids: [T], rows concatenated, unmasked.
            offsets: [rows + 1], delimiting the rows.
            keys: [rows], from `row_keys`.
        """
        lengths = np.diff(offsets)
        wanted = np.rint(lengths * self.masked_lm_prob).astype(np.int64)
        wanted = np.minimum(self.max_predictions_per_seq, np.maximum(1, wanted))
        is_special = self._is_special(input_ids)
        special_tokens = np.diff(np.searchsorted(np.flatnonzero(is_special), offsets))
        num_predictions: IntArray = np.minimum(wanted, lengths - special_tokens)
        if self.continues is not None and not self.spans:
            self._lower_to_words(num_predictions, input_ids, offsets, is_special, keys)
        return num_predictions

    def _lower_to_words(
        self, counts: IntArray, input_ids: Ids, offsets: IntArray, is_special: npt.NDArray[np.bool_], keys: KeyArray
    ) -> None:
        """Lower the counts of rows whose words do not add up to them; words of one piece always fill a row."""
        assert self.continues is not None
        words = find_words(input_ids, offsets, is_special, self.continues)
        singles = np.bincount(words.rows[words.sizes == 1], minlength=len(counts))
        rows = np.flatnonzero(singles < counts)
        own = Ragged(input_ids, offsets).take(rows)
        chosen, _ = self._choose_by_groups(own.values, own.lengths(), keys[rows], counts[rows])
        counts[rows] = np.diff(np.searchsorted(chosen, own.offsets))

    def apply(
        self, input_ids: Ids, lengths: IntArray, keys: KeyArray, num_predictions: IntArray
    ) -> tuple[IntArray, Ids]:
        """Mask rows in place.

        Args:
            input_ids: [T], rows concatenated, unmasked.
            lengths, keys, num_predictions: [rows], the latter two from `row_keys` and `num_predictions`.

        Returns:
            masked_lm_positions: int64, flat among the T tokens, ascending; masked_lm_ids: the original tokens.
        """
        starts = np.cumsum(lengths) - lengths
        chosen, anchors = self._choose_by_groups(input_ids, lengths, keys, num_predictions)
        masked_ids = input_ids[chosen]
        row_starts = np.repeat(starts, num_predictions)
        positions = chosen - row_starts
        anchors = positions if anchors is chosen else anchors - row_starts
        input_ids[chosen] = self._replaced(masked_ids, positions, anchors, np.repeat(keys, num_predictions))
        return chosen, masked_ids

    def _choose_by_groups(self, input_ids: Ids, lengths: IntArray, keys: KeyArray, num_predictions: IntArray) -> Spans:
        if self.continues is None:
            # Each token is replaced by itself.
            positions = self._choose_tokens(input_ids, lengths, keys, num_predictions)
            return Spans(positions, positions)
        ends = np.cumsum(lengths)
        starts = ends - lengths
        groups: list[Spans] = []
        for first in range(0, len(lengths), GROUP_ROWS):
            own = slice(first, first + GROUP_ROWS)
            begin, end = int(starts[first]), int(ends[own][-1])
            group = input_ids[begin:end], lengths[own], keys[own], num_predictions[own]
            if self.spans:
                found = self._choose_spans(*group)
            else:
                positions = self._choose_words(*group)
                found = Spans(positions, positions)
            groups.append(Spans(found.positions + begin, found.anchors + begin))
        if not groups:
            return Spans(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        return Spans(*(np.concatenate(parts) for parts in zip(*groups, strict=True)))

    def _choose_spans(self, input_ids: Ids, lengths: IntArray, keys: KeyArray, wanted: IntArray) -> Spans:
        assert self.continues is not None
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        words = find_words(input_ids, offsets, self._is_special(input_ids), self.continues)

        def draw(purpose: int) -> Draw:
            return lambda rows, number: _draw(keys[rows], np.full(len(rows), purpose + number))

        return choose_spans(words, len(input_ids), wanted, draw(_SPAN_START), draw(_SPAN_LENGTH))

    def _choose_tokens(self, input_ids: Ids, lengths: IntArray, keys: KeyArray, num_predictions: IntArray) -> IntArray:
        """The maskable tokens of each row with the smallest random numbers, as flat positions in ascending order.

        Some rows at a time are sorted as those of a matrix, which is faster than all their tokens if rows of nearly
        equal length are next to each other; a micro-batch has its longest ones first.
        """
        ends = np.cumsum(lengths)
        starts = ends - lengths
        special = np.flatnonzero(self._is_special(input_ids))
        bounds = np.concatenate([[0], np.searchsorted(special, ends)])
        chosen: list[IntArray] = []
        for first in range(0, len(lengths), GROUP_ROWS):
            rows = slice(first, first + GROUP_ROWS)
            own_lengths, counts = lengths[rows], num_predictions[rows]
            longest, most = int(own_lengths.max()), int(counts.max())
            order = _sort_keys(keys[rows], longest)
            # What must not be chosen comes last: special tokens and padding.
            own_bounds = bounds[first : first + len(own_lengths) + 1]
            row_starts = np.arange(len(own_lengths)) * longest - starts[rows]
            places = special[own_bounds[0] : own_bounds[-1]] + np.repeat(row_starts, np.diff(own_bounds))
            order.reshape(-1)[places] = _LAST
            if own_lengths.min() < longest:
                shorter = slice(int(np.argmax(own_lengths < longest)), None)
                order[shorter][np.arange(longest) >= own_lengths[shorter, None]] = _LAST
            order.sort(axis=1)
            positions = (order[:, :most] & _POSITION_MASK).astype(np.uint16)
            is_chosen = None if counts.min() == most else np.arange(most) < counts[:, None]
            if is_chosen is not None:
                positions[~is_chosen] = _POSITION_MASK
            positions.sort(axis=1)
            flat = positions + starts[rows, None]
            chosen.append(flat.reshape(-1) if is_chosen is None else flat[is_chosen])
        return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)

    def _choose_words(self, input_ids: Ids, lengths: IntArray, keys: KeyArray, wanted: IntArray) -> IntArray:
        """The tokens of the words with the smallest random numbers, those of their first tokens."""
        assert self.continues is not None
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        words = find_words(input_ids, offsets, self._is_special(input_ids), self.continues)
        positions = words.starts - offsets[words.rows]
        order = (_draw(keys[words.rows], positions) >> _SCORE_BITS_DROPPED) << _SCORE_SHIFT
        order |= positions.astype(np.uint64)
        order |= words.rows.astype(np.uint64) << _ROW_SHIFT
        order.sort()
        size_at = np.zeros(len(input_ids), dtype=np.int64)
        size_at[words.starts] = words.sizes
        rows = (order >> _ROW_SHIFT).astype(np.int64)
        starts = (order & _POSITION_MASK).astype(np.int64) + offsets[rows]
        starts = np.sort(starts[choose_words(size_at[starts], rows, wanted)])
        sizes = size_at[starts]
        before = np.cumsum(sizes) - sizes
        chosen: IntArray = np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes)
        return chosen

    def _replaced(self, ids: Ids, positions: IntArray, anchors: IntArray, keys: KeyArray) -> Ids:
        """By BERT's shares 80 % become [MASK], 10 % stay, 10 % become any token; tokens of one anchor alike."""
        fate = _draw(keys, anchors + _FATE) >> np.uint64(11)
        replaced = ids.copy()
        replaced[fate < _of_53_bits(self.shares.mask)] = self.mask_id
        is_random = np.flatnonzero(fate >= _of_53_bits(max(1.0 - self.shares.random, self.shares.mask)))
        numbers = _draw(keys[is_random], positions[is_random] + _REPLACEMENT) >> np.uint64(32)
        replaced[is_random] = (numbers * np.uint64(self.vocab_size)) >> np.uint64(32)
        return replaced

    def _is_special(self, input_ids: Ids) -> npt.NDArray[np.bool_]:
        is_special: npt.NDArray[np.bool_] = (input_ids == self.cls_id) | (input_ids == self.sep_id)
        return is_special


def masking_of(
    metadata: Mapping[str, str],
    tokens: Sequence[str],
    masking: str = "as_written",
    masked_lm_prob: float | None = None,
    shares: MaskSharesConfig = BERT_SHARES,
) -> DynamicMasking | None:
    """The rule for masking examples at reading; None if their masks are used as written.

    Args:
        metadata: of the examples' schema (pipelines.contract.manifest.examples_schema).
        tokens: the vocabulary, in order of ids.
        masking: `pretraining.masking`.
        masked_lm_prob: replaces that of the examples, and then limits a row's predictions alone.
        shares: `pretraining.mask_shares`.

    Raises:
        InputError: the settings contradict those of the examples, or an older version made these.
    """
    written = metadata.get("clozeworks.masking", "static")
    if masking == "as_written" and written not in UNMASKED:
        if masked_lm_prob is not None:
            raise InputError(
                f"masked_lm_prob = {masked_lm_prob} in a phase, but the examples were masked with examples.masking = "
                f"{written}; set pretraining.masking = 'dynamic', or make a set of examples with this masked_lm_prob"
            )
        if shares != BERT_SHARES:
            raise InputError(
                f"pretraining.mask_shares = {shares.mask:g} [MASK], {shares.random:g} random, but the examples were "
                f"masked with examples.masking = {written}, by BERT's shares; set pretraining.masking = 'dynamic'"
            )
        return None
    if masking == "dynamic" and written in WHOLE_WORDS:
        raise InputError(
            f"pretraining.masking = dynamic masks single tokens, but the examples were made with examples.masking = "
            f"{written}; set it to dynamic_whole_word or as_written, or rebuild the examples with static or dynamic"
        )
    values = [metadata.get(f"clozeworks.{name}") for name in ("masked_lm_prob", "max_predictions_per_seq")]
    if None in values:
        raise InputError("the examples do not record masked_lm_prob and max_predictions_per_seq; rebuild the stage")
    rate, most = float(str(values[0])), int(str(values[1]))
    if masked_lm_prob is not None:
        rate, most = masked_lm_prob, int(metadata["clozeworks.max_seq_length"])
    cls_id, sep_id, mask_id = (tokens.index(token) for token in (CLS, SEP, MASK))
    kind = written if masking == "as_written" else masking
    needs_words = kind in WHOLE_WORDS or kind == SPANS
    continues = np.array([token.startswith(CONTINUATION) for token in tokens]) if needs_words else None
    return DynamicMasking(rate, most, cls_id, sep_id, mask_id, len(tokens), continues, shares, kind == SPANS)
