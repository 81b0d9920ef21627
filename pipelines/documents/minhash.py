"""Near-duplicates by MinHash: signatures of documents, bands in which similar ones meet, and which document stays.

A document is the set of its word n-grams (Lee et al., 2022, "Deduplicating Training Data Makes Language Models Better",
section 4.2 and appendix A). Signatures estimate the Jaccard similarity of two sets; documents whose signatures agree in
a complete band are compared, and those at or above the threshold are joined. Of each connected component, the document
with the smallest id stays. The result does not depend on the order of documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from pipelines.filtering.shingles import ODD, mix
from pipelines.settings.documents import NearDuplicatesConfig

_SEED = 1
_MEETING_PROBABILITY = 0.95


class BandShape(NamedTuple):
    """The division of a signature into bands of `rows` values; left-over values serve the comparison only."""

    bands: int
    rows: int


def band_shape(config: NearDuplicatesConfig) -> BandShape:
    """The longest bands in which a pair of exactly `min_similarity` still meets with a probability of 0.95.

    In long bands few pairs meet by chance. The usual choice weighs missed pairs against false ones (datasketch); here a
    false pair costs only a comparison, so pairs must not be missed.
    """
    for rows in range(config.num_permutations, 1, -1):
        bands = config.num_permutations // rows
        if 1 - (1 - config.min_similarity**rows) ** bands >= _MEETING_PROBABILITY:
            return BandShape(bands, rows)
    return BandShape(config.num_permutations, 1)


def signatures_of(texts: Iterable[str], config: NearDuplicatesConfig) -> NDArray[np.uint32]:
    """MinHash signatures of texts that have words, [texts, num_permutations]."""
    # It compiles its loops, which jobs without near-duplicates need not load.
    from pipelines.filtering.word_hashes import shingle_hashes

    shingles = [shingle_hashes(text, config.words_per_shingle) for text in texts]
    assert all(map(len, shingles)), "a text without words has no signature"
    if not shingles:
        return np.zeros((0, config.num_permutations), np.uint32)
    offsets = np.cumsum([0, *map(len, shingles)]).tolist()
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(shingles), offsets, config.num_permutations, _SEED
    )
    return np.array(matrix.to_rows(), np.uint32)


def band_keys(signatures: NDArray[np.uint32], shape: BandShape) -> NDArray[np.uint64]:
    """One key for each band of each signature, [documents, bands]; equal keys mean equal bands at one place."""
    num_values = shape.bands * shape.rows
    values = signatures[:, :num_values].reshape(-1, shape.bands, shape.rows).astype(np.uint64)
    keys = np.broadcast_to(np.arange(shape.bands, dtype=np.uint64), values.shape[:2])
    for row in range(shape.rows):
        keys = mix(keys * ODD + values[:, :, row])
    return keys


def meeting_groups(entries: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
    """Documents that share a band key.

    Args:
        entries: [n, 3], each a band key and the two halves of a document id.

    Returns:
        For each key of two or more distinct documents their ids, ascending, [documents, 2].
    """
    entries = np.unique(entries, axis=0)
    starts = np.flatnonzero(np.r_[True, entries[1:, 0] != entries[:-1, 0]]) if len(entries) else np.zeros(0, np.int64)
    stops = np.r_[starts[1:], len(entries)]
    return [entries[start:stop, 1:] for start, stop in zip(starts, stops, strict=True) if stop - start > 1]


def similarities(signature: NDArray[np.uint32], others: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of one document to others; its standard error is at most 0.5 / sqrt(values)."""
    return np.asarray((others == signature).mean(axis=1, dtype=np.float64))


def alike_components(
    groups: Sequence[Sequence[int]], signatures: NDArray[np.uint32], min_similarity: float
) -> NDArray[np.int64]:
    """For each document the smallest row of the component that it belongs to: int64 [documents].

    Within a group, the smallest document is compared with the others, then the smallest of those unlike it, and so on:
    a group of similar documents costs one comparison each, not quadratically many.

    Args:
        groups: documents that met in a band, by their row in `signatures`, ascending.
    """
    parent = np.arange(len(signatures))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = int(parent[node])
        return node

    # The same documents meet in many bands.
    for group in {tuple(group) for group in groups}:
        left = np.array(group)
        while len(left) > 1:
            leader, others = int(left[0]), left[1:]
            is_alike = similarities(signatures[leader], signatures[others]) >= min_similarity
            for other in others[is_alike]:
                one, two = root(leader), root(int(other))
                parent[max(one, two)] = min(one, two)
            left = others[~is_alike]
    return np.array([root(node) for node in range(len(signatures))], np.int64)
