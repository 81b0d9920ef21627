"""Find documents that share word n-grams with evaluation data (Brown et al., 2020, "GPT-3", appendix C).

The n-grams of the evaluation texts are hashed once, into a file that all workers map into memory. A document with one
of them is dropped. As there, a word is in lower case and without punctuation, and a text of fewer words than an n-gram
has none. Unlike there, a document is dropped as one piece, and an n-gram counts however many documents have it. With
64-bit hashes, one false match is expected per 10^13 document words for a million evaluation n-grams.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.contract.errors import InputError
from pipelines.filtering.evaluation_texts import evaluation_texts
from pipelines.filtering.shingles import gram_hashes, words_of
from pipelines.jobs.arrow_files import open_arrow
from pipelines.reading.source import InputFile

CONTAMINATED = "contaminated"
"""Reason of a reject."""

_BITS_PER_GRAM = 8
_FACTS_KEY = b"clozeworks.decontamination"


class EvaluationFacts(NamedTuple):
    """What was looked for: the files' labels, texts, those too short for an n-gram, and distinct n-grams."""

    words_per_gram: int
    files: list[str]
    texts: int
    short_texts: int
    grams: int


class Hit(NamedTuple):
    """The first n-gram of a document that evaluation data have, too."""

    file: str
    words: str


def collect_grams(files: Sequence[InputFile], words_per_gram: int) -> tuple[EvaluationFacts, pa.Table]:
    """Hash the n-grams of evaluation files: what was found, and a sorted table that `EvaluationGrams` reads.

    An n-gram belongs to the first file that has it.

    Raises:
        InputError: a file cannot be read, or none has a text of so many words.
    """
    from pipelines.filtering.word_hashes import word_hashes

    hashes: list[NDArray[np.uint64]] = []
    owners: list[NDArray[np.int32]] = []
    num_texts = num_short = 0
    for number, file in enumerate(files):
        for text in evaluation_texts(file):
            words = word_hashes(text)
            if not len(words):
                continue
            num_texts += 1
            if len(words) < words_per_gram:
                num_short += 1
                continue
            hashes.append(gram_hashes(words, words_per_gram))
            owners.append(np.full(len(hashes[-1]), number, np.int32))
    if not hashes:
        raise InputError(
            f"documents.decontamination: none of the {num_texts:,} texts in {len(files):,} files has "
            f"words_per_gram = {words_per_gram} words; lower it, or remove the section"
        )
    distinct, first = np.unique(np.concatenate(hashes), return_index=True)
    facts = EvaluationFacts(words_per_gram, [file.name for file in files], num_texts, num_short, len(distinct))
    table = pa.table({"gram": distinct, "file": np.concatenate(owners)[first]})
    return facts, table.replace_schema_metadata({_FACTS_KEY: json.dumps(facts._asdict())})


def read_facts(uri: str) -> EvaluationFacts:
    """What `collect_grams` found."""
    with open_arrow(uri) as file:
        return EvaluationFacts(**json.loads(file.schema.metadata[_FACTS_KEY]))


class EvaluationGrams:
    """The n-grams of evaluation data, mapped from the file that holds them."""

    def __init__(self, uri: str):
        self._facts = read_facts(uri)
        with open_arrow(uri) as file:
            batch = file.get_batch(0)
        self._grams: NDArray[np.uint64] = batch.column("gram").to_numpy()
        self._files: NDArray[np.int32] = batch.column("file").to_numpy()
        # Most n-grams of documents are ruled out by a few of their bits.
        self._mask = np.uint64((_BITS_PER_GRAM << len(self._grams).bit_length()) - 1)
        self._may_be_known = np.zeros(int(self._mask) + 1, bool)
        self._may_be_known[self._grams & self._mask] = True

    def find(self, sentences: Sequence[str]) -> Hit | None:
        """The first n-gram of a document that evaluation data have; None if there is none."""
        from pipelines.filtering.word_hashes import word_hashes

        text = " ".join(sentences)
        words = word_hashes(text)
        size = self._facts.words_per_gram
        if len(words) < size:
            return None
        hashes = gram_hashes(words, size)
        places = np.flatnonzero(self._may_be_known[hashes & self._mask])
        hashes = hashes[places]
        rows = np.minimum(np.searchsorted(self._grams, hashes), len(self._grams) - 1)
        known = np.flatnonzero(self._grams[rows] == hashes)
        if not len(known):
            return None
        file = self._facts.files[self._files[rows[known[0]]]]
        return Hit(file, " ".join(words_of(text, int(places[known[0]]), size)))
