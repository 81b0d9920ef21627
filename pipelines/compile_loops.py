"""Compile the numba loops ahead of time: `python -m pipelines.compile_loops`.

numba caches the machine code next to the source; a worker image runs this once when it is built. A process that forks
workers loads it first, so that each of them need not.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.contract.schemas import SPECIAL_TOKENS
from pipelines.examples.masking import build_examples
from pipelines.examples.planned_rows import TokenizedDocuments
from pipelines.examples.planning import masking_rules, plan_examples
from pipelines.filtering.word_hashes import shingle_hashes
from pipelines.settings.examples import ExampleLengthConfig, ExamplesConfig
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.trainer import train


def load_loops() -> None:
    """Run every loop on a few words: compiled the first time, then loaded from the cache."""
    shingle_hashes("lower", 1)
    words = pa.array(["low", "lower", "lowest"])
    vocabulary = train(words, np.array([3, 2, 2], np.int64), size=len(SPECIAL_TOKENS) + 14)
    tokenized = WordPieceTokenizer(vocabulary, lowercase=True).tokenize(pa.array(["low lower", "lowest"] * 2))
    documents = TokenizedDocuments(
        tokenized.input_ids,
        tokenized.offsets,
        document_offsets=np.array([0, 2, 4]),
        document_keys=np.array([1, 2], np.uint64),
    )
    length = ExampleLengthConfig(max_seq_length=16, max_predictions_per_seq=2)
    for next_sentence in (True, False):
        config = ExamplesConfig.model_validate({"lengths": (length,), "next_sentence": next_sentence})
        rows = plan_examples(documents, config, length.max_seq_length)
        build_examples(documents.input_ids, rows, masking_rules(config, length, vocabulary))


if __name__ == "__main__":
    load_loops()
