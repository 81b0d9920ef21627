"""Documents of made-up tokens, for the tests of cutting and masking."""

from __future__ import annotations

import numpy as np

from pipelines.examples.masking import MaskedExamples, MaskingRules
from pipelines.examples.planned_rows import TokenizedDocuments

Documents = list[list[list[int]]]
CLS, SEP, MASK = 2, 3, 4
SPECIAL = {"cls": CLS, "sep": SEP, "mask": MASK}
VOCABULARY_SIZE = 60
CONTINUATIONS = set(range(40, 60))


def flat(documents: Documents) -> TokenizedDocuments:
    sentences = [sentence for document in documents for sentence in document]
    return TokenizedDocuments(
        input_ids=np.array([token for sentence in sentences for token in sentence], np.int32),
        sentence_offsets=np.cumsum([0, *map(len, sentences)]),
        document_offsets=np.cumsum([0, *map(len, documents)]),
        document_keys=np.arange(1000, 1000 + len(documents), dtype=np.uint64),
    )


def regular_corpus(num_documents: int, sentences: int, tokens: int) -> TokenizedDocuments:
    """Documents with these numbers of sentences and tokens; a token's id is its place, so that ranges are visible."""
    num_sentences = num_documents * sentences
    return TokenizedDocuments(
        input_ids=np.arange(num_sentences * tokens, dtype=np.int32),
        sentence_offsets=np.arange(num_sentences + 1) * tokens,
        document_offsets=np.arange(num_documents + 1) * sentences,
        document_keys=np.arange(1000, 1000 + num_documents, dtype=np.uint64),
    )


def random_corpus(num_documents: int, sentences: int = 60) -> TokenizedDocuments:
    """Sentences of 3 to 24 random tokens."""
    generator = np.random.Generator(np.random.Philox(key=5))
    lengths = generator.integers(3, 25, size=num_documents * sentences)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return TokenizedDocuments(
        input_ids=generator.integers(5, VOCABULARY_SIZE, size=offsets[-1]).astype(np.int32),
        sentence_offsets=offsets,
        document_offsets=np.arange(num_documents + 1) * sentences,
        document_keys=np.arange(1000, 1000 + num_documents, dtype=np.uint64),
    )


def rules(whole_word: bool = False, prob: float = 0.15, most: int = 20, is_dynamic: bool = False) -> MaskingRules:
    is_continuation = np.array([number in CONTINUATIONS for number in range(VOCABULARY_SIZE)])
    return MaskingRules(prob, most, whole_word, CLS, SEP, MASK, is_continuation, is_dynamic)


def row_of(examples: MaskedExamples, number: int) -> tuple[list[int], list[int], list[int]]:
    """A row's `input_ids`, `masked_lm_positions` and `masked_lm_ids`."""
    start, stop = examples.offsets[number : number + 2]
    first, last = examples.masked_lm_offsets[number : number + 2]
    return (
        examples.input_ids[start:stop].tolist(),
        examples.masked_lm_positions[first:last].tolist(),
        examples.masked_lm_ids[first:last].tolist(),
    )
