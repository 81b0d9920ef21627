"""Compile the numba loops ahead, so that the first job does not wait for them: `python -m pipelines.compile_loops`.

numba keeps the machine code beside the source; a worker image runs this once when it is built.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.contract import SPECIAL_TOKENS
from pipelines.examples import examples_of
from pipelines.masking import MaskingRules
from pipelines.sentence_pairs import TokenizedDocuments
from pipelines.wordpiece import WordPieceTokenizer
from pipelines.wordpiece_trainer import train


def main() -> None:
    words = pa.array(["low", "lower", "lowest"])
    vocabulary = train(words, np.array([3, 2, 2], np.int64), size=len(SPECIAL_TOKENS) + 14)
    tokenized = WordPieceTokenizer(vocabulary, lowercase=True).tokenize(pa.array(["low lower", "lowest"] * 2))
    documents = TokenizedDocuments(
        tokenized.input_ids,
        tokenized.offsets,
        document_offsets=np.array([0, 2, 4]),
        document_keys=np.array([1, 2], np.uint64),
    )
    rules = MaskingRules(0.15, 2, False, 2, 3, 4, np.array([token.startswith("##") for token in vocabulary]))
    examples_of(documents, seed=0, passes=1, max_seq_length=16, short_seq_prob=0.1, rules=rules)


if __name__ == "__main__":
    main()
