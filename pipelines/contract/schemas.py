"""Special tokens, splits, Arrow schemas, and bins of row length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import pyarrow as pa

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"


SPECIAL_TOKENS = (PAD, UNK, CLS, SEP, MASK)
CONTINUATION = "##"
"""Begins an entry of the vocabulary that continues a word."""


Split = Literal["train", "heldout"]


SPLITS: tuple[Split, ...] = ("train", "heldout")


UNMASKED = ("dynamic", "dynamic_whole_word")
WHOLE_WORDS = ("whole_word", "dynamic_whole_word")
"""Values of `examples.masking`: rows are written unmasked; all pieces of a word are masked together."""


DOCUMENT_ID_BYTES = 16


DOCUMENTS_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.binary(DOCUMENT_ID_BYTES), nullable=False),
        pa.field("source", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("sentences", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),
    ]
)
"""One row a document. `doc_id`: hash of the sentences; `source`: where it came from; `sentences`: in reading order."""


def documents_schema(source_names: Sequence[str]) -> pa.Schema:
    """`DOCUMENTS_SCHEMA`, with the name of each document's source if the sources have names."""
    if not source_names:
        return DOCUMENTS_SCHEMA
    return DOCUMENTS_SCHEMA.append(pa.field("source_name", pa.dictionary(pa.int32(), pa.string()), nullable=False))


def token_id_type(vocabulary_size: int) -> pa.DataType:
    """The narrowest Arrow type that holds every id of a vocabulary."""
    return pa.uint16() if vocabulary_size <= 1 << 16 else pa.uint32()


def examples_schema(vocabulary_size: int, metadata: Mapping[str, str]) -> pa.Schema:
    """One row a sequence, unpadded, masks already applied to `input_ids`.

    With next sentences a row is the pair `[CLS] A [SEP] B [SEP]`; `segment_b_start` is the position of B's first token,
    and `next_sentence_label` is 1 where B is random, as in the released code. Without (metadata `next_sentence` =
    "false") it is `[CLS]`, full sentences with a [SEP] between documents, `[SEP]`; `segment_b_start` is then the row's
    length, as there is no B, and `next_sentence_label` is 0.

    Masks are reversible: put `masked_lm_ids` back at `masked_lm_positions`. With metadata `masking` in `UNMASKED` both
    lists are empty and training draws the masks. Rows are longer than metadata `bin_above` and at most `bin_up_to`.
    """
    ids = pa.list_(pa.field("item", token_id_type(vocabulary_size), nullable=False))
    positions = pa.list_(pa.field("item", pa.uint16(), nullable=False))
    return pa.schema(
        [
            pa.field("input_ids", ids, nullable=False),
            pa.field("segment_b_start", pa.uint16(), nullable=False),
            pa.field("masked_lm_positions", positions, nullable=False),
            pa.field("masked_lm_ids", ids, nullable=False),
            pa.field("next_sentence_label", pa.uint8(), nullable=False),
        ],
        metadata={f"clozeworks.{key}": value for key, value in sorted(metadata.items())},
    )


class LengthBin(NamedTuple):
    """Rows longer than `above` and at most `up_to` tokens."""

    above: int
    up_to: int


def length_bins(max_seq_length: int, num_bins: int) -> list[LengthBin]:
    """Equal steps of row length, up to one token."""
    ends = [max_seq_length * number // num_bins for number in range(num_bins + 1)]
    return [LengthBin(above, up_to) for above, up_to in pairwise(ends)]
