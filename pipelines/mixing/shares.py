"""How often each document is read, from the sources' weights and their tokens.

Shares are realised where examples are made, because only there the documents have tokens: the documents record the
name of their source and do not depend on weights, so trying another mix reads no text again.

With T tokens in the training documents of all sources of a set and p passes, p * T tokens are read in any case, and a
source with the share w of the weights gives p * T * w of these. If it has t tokens, each of its documents is read
floor(p * T * w / t) times, and some of them once more: those with the smallest random words (a hash of the seed and
the document), as many as come nearest to the rest. So a source misses its share by at most half a document, and no
document of a source is read two times more than another. Reads have numbers, and each number has its own keys for cuts
and masks, so no two reads of a document are alike. Held-out documents are read once a pass, whatever the weights.

The rest is found without sorting the corpus: token sums by the leading bits of the words name the range in which the
last document is, and only the words of this range are sorted. All sums are of whole numbers, hence the result depends
neither on the number nor on the order of shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.contract.errors import InputError
from pipelines.settings.examples import ExamplesConfig
from pipelines.statistics.preprocessing import SourceStatistics

_RANGE_BITS = 16
_RANGE_SHIFT = np.uint64(64 - _RANGE_BITS)
_SHARE_DIGITS = 6


class SourceTokens(NamedTuple):
    """Some documents: int64 `sources` (numbers of `names`), uint64 random `words`, and int64 `tokens`, [documents]."""

    names: Sequence[str]
    sources: NDArray[np.int64]
    words: NDArray[np.uint64]
    tokens: NDArray[np.int64]


class SourceReads(NamedTuple):
    """A source's documents are read `times`, those with a word below `once_more_below` one time more."""

    times: int
    once_more_below: int


class Mixture(NamedTuple):
    """The reads of each source of a set by its name, and what the manifest states about it."""

    reads: Mapping[str, SourceReads]
    statistics: Mapping[str, SourceStatistics]


def mixed_sets(config: ExamplesConfig) -> dict[str, ExamplesConfig]:
    """The sets that name sources, by name; "" is the section's own."""
    sets = {name or "": config.of_set(name) for name in (None, *(one.name for one in config.sets))}
    return {name: of_set for name, of_set in sets.items() if of_set.sources}


def mixture_of(config: ExamplesConfig, documents: Callable[[], Iterable[SourceTokens]]) -> Mixture:
    """The mixture of a set of examples.

    Args:
        config: of the set; it has `sources`.
        documents: the training documents, shard by shard in any order; called twice if there are weights.

    Raises:
        InputError: a source has no training document.
    """
    names = [share.name for share in config.sources]
    counts, tokens, sums = _sums_by_range(names, documents())
    for name, of_source in zip(names, tokens, strict=True):
        if not of_source:
            raise InputError(
                f"examples: no training document of the source {name!r} has a token, so its weight cannot be given; "
                "remove the source from examples.sources and examples.sets, or add texts to it"
            )
    total, passes = sum(tokens), config.passes
    if config.sources[0].weight is None:
        asked = [Fraction(passes * of_source) for of_source in tokens]
    else:
        weights = [Fraction(share.weight or 0.0) for share in config.sources]
        asked = [passes * total * weight / sum(weights) for weight in weights]
    times = [int(share // of_source) for share, of_source in zip(asked, tokens, strict=True)]
    rests = [share - of_source * often for share, of_source, often in zip(asked, tokens, times, strict=True)]
    ranges = [_range_of(of_source, rest) for of_source, rest in zip(sums, rests, strict=True)]
    found = _documents_in(names, ranges, documents() if any(rests) else ())
    reads, read_tokens = {}, []
    for place, name in enumerate(names):
        before = int(sums[place][: ranges[place]].sum())
        below, once_more = _end_of_rest(*found[place], ranges[place], before, rests[place])
        is_all = once_more == tokens[place]
        reads[name] = SourceReads(times[place] + is_all, 0 if is_all else below)
        read_tokens.append(times[place] * tokens[place] + once_more)
    statistics = {
        name: SourceStatistics(
            train_documents=counts[place],
            train_tokens=tokens[place],
            tokens_read=read_tokens[place],
            reads_per_pass=round(read_tokens[place] / (passes * tokens[place]), _SHARE_DIGITS),
            asked_share=round(float(asked[place] / sum(asked)), _SHARE_DIGITS),
            share=round(read_tokens[place] / sum(read_tokens), _SHARE_DIGITS),
        )
        for place, name in enumerate(names)
    }
    return Mixture(reads, statistics)


def times_read(documents: SourceTokens, mixture: Mixture) -> NDArray[np.int64]:
    """How often each training document is read in all passes together: int64 [documents]."""
    times = np.zeros(len(documents.sources), np.int64)
    for name, reads in mixture.reads.items():
        own = _is_of(documents, name)
        times[own] = reads.times + (documents.words[own] < np.uint64(reads.once_more_below))
    return times


def times_read_heldout(documents: SourceTokens, config: ExamplesConfig) -> NDArray[np.int64]:
    """The same for held-out documents: once a pass if the set reads their source."""
    is_read = np.zeros(len(documents.sources), np.bool_)
    for share in config.sources:
        is_read |= _is_of(documents, share.name)
    return np.where(is_read, config.passes, 0)


def _is_of(documents: SourceTokens, name: str) -> NDArray[np.bool_]:
    if name not in documents.names:
        return np.zeros(len(documents.sources), np.bool_)
    is_own: NDArray[np.bool_] = documents.sources == documents.names.index(name)
    return is_own


def _sums_by_range(
    names: Sequence[str], shards: Iterable[SourceTokens]
) -> tuple[list[int], list[int], list[NDArray[np.int64]]]:
    """Of each source: documents, tokens, and tokens by range of the words, int64 [ranges]."""
    counts = [0] * len(names)
    sums = [np.zeros(1 << _RANGE_BITS, np.int64) for _ in names]
    for place, own in _by_source(names, shards):
        counts[place] += len(own.tokens)
        np.add.at(sums[place], (own.words >> _RANGE_SHIFT).astype(np.int64), own.tokens)
    return counts, [int(of_source.sum()) for of_source in sums], sums


def _range_of(sums: NDArray[np.int64], rest: Fraction) -> int:
    """The range in which the sum of tokens passes `rest`."""
    return min(int(np.searchsorted(np.cumsum(sums), int(rest), side="right")), len(sums) - 1)


def _documents_in(
    names: Sequence[str], ranges: Sequence[int], shards: Iterable[SourceTokens]
) -> list[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Words and tokens of each source's documents in one range, in the order of their words."""
    words: list[list[NDArray[np.uint64]]] = [[np.empty(0, np.uint64)] for _ in names]
    tokens: list[list[NDArray[np.int64]]] = [[np.empty(0, np.int64)] for _ in names]
    for place, own in _by_source(names, shards):
        inside = (own.words >> _RANGE_SHIFT) == ranges[place]
        words[place].append(own.words[inside])
        tokens[place].append(own.tokens[inside])
    found = []
    for own_words, own_tokens in zip(map(np.concatenate, words), map(np.concatenate, tokens), strict=True):
        order = np.argsort(own_words, kind="stable")
        found.append((own_words[order], own_tokens[order]))
    return found


def _by_source(names: Sequence[str], shards: Iterable[SourceTokens]) -> Iterator[tuple[int, SourceTokens]]:
    for shard in shards:
        for place, name in enumerate(names):
            own = _is_of(shard, name)
            yield place, SourceTokens(shard.names, shard.sources[own], shard.words[own], shard.tokens[own])


def _end_of_rest(
    words: NDArray[np.uint64], tokens: NDArray[np.int64], number: int, before: int, rest: Fraction
) -> tuple[int, int]:
    """The word that ends the documents read once more, and their tokens: the sum that is nearest to `rest`.

    Args:
        words, tokens: of the documents in range `number`, in the order of the words.
        before: tokens in the ranges before it.
    """
    if not rest:
        return 0, 0
    sums = [before, *(before + np.cumsum(tokens)).tolist()]
    nearest = min(range(len(sums)), key=lambda place: (abs(sums[place] - rest), place))
    end = (number + 1) << (64 - _RANGE_BITS) if nearest == len(words) else int(words[nearest])
    return end, sums[nearest]
