"""Estimate the bytes that the preprocessing stages will write, before any of them has run.

Cheap to import, without Beam. How many rows a megabyte of text gives depends on the texts, so the row shapes here mix
books and articles as BERT's corpus did; a finished workspace has measured ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from pipelines.contract.schemas import UNMASKED, token_id_type
from pipelines.settings.examples import ExamplesConfig

MEGABYTE = 1_000_000
DOCUMENTS_BYTES_A_TEXT_BYTE = 1.04
"""Offsets, ids and sources next to the sentences: 1.03 for novels, 1.06 for Wikipedia."""
VOCABULARY_BYTES_AN_ENTRY = 36
"""vocab.txt and tokenizer.json together, 31 for BERT's own vocabulary."""


class LengthShape(NamedTuple):
    """What one pass makes of text at one maximum length."""

    rows_per_megabyte: float
    mean_length: float
    mean_squared_length: float

    def at(self, scale: float) -> LengthShape:
        """Estimate for a maximum length `scale` times this one: rows equally full, and fewer by this factor."""
        return LengthShape(
            self.rows_per_megabyte / scale, self.mean_length * scale, self.mean_squared_length * scale**2
        )


SHAPES_BASIS = "70 novels (52 MB, a quarter) and 16,404 Wikipedia articles (30 MB), vocabulary of 30,522"
_BOOKS_SHARE = 0.25
"""Devlin et al., 2019, section 3.1: 800 M words of books, 2,500 M of Wikipedia."""
_BOOKS = {
    (True, 128): LengthShape(2169.8, 120.39, 0.9106 * 128**2),
    (True, 512): LengthShape(798.3, 369.15, 0.6667 * 512**2),
    (False, 128): LengthShape(2174.1, 107.74, 0.7477 * 128**2),
    (False, 512): LengthShape(480.2, 480.77, 0.9200 * 512**2),
}
_ARTICLES = {
    (True, 128): LengthShape(2648.6, 100.92, 0.6985 * 128**2),
    (True, 512): LengthShape(1294.2, 224.97, 0.3132 * 512**2),
    (False, 128): LengthShape(1909.6, 111.33, 0.7831 * 128**2),
    (False, 512): LengthShape(424.1, 494.51, 0.9712 * 512**2),
}
"""By (next_sentence, max_seq_length)."""


def disk_bytes_documents(text_bytes: float) -> float:
    """Size of the documents for a size of plain text."""
    return text_bytes * DOCUMENTS_BYTES_A_TEXT_BYTE


def disk_bytes_vocabulary(vocab_size: int) -> float:
    return float(vocab_size * VOCABULARY_BYTES_AN_ENTRY)


def disk_bytes_examples(
    examples: ExamplesConfig,
    vocab_size: int,
    text_bytes: float,
    shapes: Mapping[int, LengthShape] | None = None,
) -> float:
    """Size of the examples, all passes and lengths of all sets; a set counts as if it read all sources.

    Args:
        shapes: of rows by maximum length, if they were measured.
    """
    return sum(
        disk_bytes_length(
            of_set, length.max_seq_length, vocab_size, text_bytes, (shapes or {}).get(length.max_seq_length)
        )
        for _, of_set, length in examples.parts()
    )


def disk_bytes_length(
    examples: ExamplesConfig,
    max_seq_length: int,
    vocab_size: int,
    text_bytes: float,
    shape: LengthShape | None = None,
) -> float:
    """Size of the examples of one maximum length, all passes."""
    shape = shape or default_shape(examples.next_sentence, max_seq_length)
    rows = text_bytes / MEGABYTE * shape.rows_per_megabyte * examples.passes
    is_masked = examples.masking not in UNMASKED
    masked = masked_per_row(examples, max_seq_length, shape.mean_length) if is_masked else 0.0
    return rows * row_bytes(shape.mean_length, masked, vocab_size)


def row_bytes(mean_length: float, mean_masked: float, vocab_size: int) -> float:
    """Bytes of one row of examples in an Arrow file, by the contract's schema.

    The tokens; a position (2 bytes) and a token for each mask; three lists' offsets of 4 bytes, segment_b_start of 2
    and next_sentence_label of 1.
    """
    id_bytes: int = token_id_type(vocab_size).bit_width // 8
    return id_bytes * mean_length + (2 + id_bytes) * mean_masked + 3 * 4 + 2 + 1


def masked_per_row(examples: ExamplesConfig, max_seq_length: int, mean_length: float) -> float:
    """Mean number of predicted tokens of a row (create_pretraining_data.py, create_masked_lm_predictions)."""
    most = next(
        length.max_predictions_per_seq for length in examples.lengths if length.max_seq_length == max_seq_length
    )
    return min(float(most), max(1.0, examples.masked_lm_prob * mean_length))


def default_shape(next_sentence: bool, max_seq_length: int) -> LengthShape:
    """What one pass makes of a megabyte of text like BERT's; extrapolated if the length was not measured."""
    nearest = min((128, 512), key=lambda length: abs(math.log(length / max_seq_length)))
    books, articles = _BOOKS[next_sentence, nearest], _ARTICLES[next_sentence, nearest]
    book_rows, article_rows = _BOOKS_SHARE * books.rows_per_megabyte, (1 - _BOOKS_SHARE) * articles.rows_per_megabyte
    rows = book_rows + article_rows
    mixed = LengthShape(
        rows,
        (book_rows * books.mean_length + article_rows * articles.mean_length) / rows,
        (book_rows * books.mean_squared_length + article_rows * articles.mean_squared_length) / rows,
    )
    return mixed.at(max_seq_length / nearest)
