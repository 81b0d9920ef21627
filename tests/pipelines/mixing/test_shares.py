"""Reads of documents by the weights of their sources, against a plain sort of all documents."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract.errors import InputError
from pipelines.mixing.shares import SourceTokens, mixture_of, times_read, times_read_heldout
from pipelines.settings.examples import ExamplesConfig

NAMES = ("novels", "wiki", "law")


def corpus(seed: int, sizes: tuple[int, ...], most_tokens: int) -> SourceTokens:
    generator = np.random.default_rng(seed)
    sources = np.repeat(np.arange(len(sizes)), sizes)
    words = generator.integers(0, 1 << 63, len(sources)).astype(np.uint64) * np.uint64(2)
    return SourceTokens(NAMES, sources, words, generator.integers(1, most_tokens + 1, len(sources)))


def cut(documents: SourceTokens, num_shards: int, seed: int) -> list[SourceTokens]:
    shard_of = np.random.default_rng(seed).integers(0, num_shards, len(documents.sources))
    return [
        SourceTokens(NAMES, *(column[shard_of == shard] for column in documents[1:])) for shard in range(num_shards)
    ]


def mix(passes: int, **weights: float | None) -> ExamplesConfig:
    shares = [{"name": name, **({} if weight is None else {"weight": weight})} for name, weight in weights.items()]
    return ExamplesConfig.model_validate({"passes": passes, "sources": shares})


def times_in_plain_python(documents: SourceTokens, config: ExamplesConfig) -> list[int]:
    """Sort each source's documents by word, and take as many as come nearest to its share."""
    rows = list(zip(documents.sources.tolist(), documents.words.tolist(), documents.tokens.tolist(), strict=True))
    chosen = [share.name for share in config.sources]
    total = sum(tokens for source, _, tokens in rows if NAMES[source] in chosen)
    weights = [Fraction(share.weight or 0) for share in config.sources]
    times = [0] * len(rows)
    for name, weight in zip(chosen, weights, strict=True):
        own = sorted((word, place) for place, (source, word, _) in enumerate(rows) if NAMES[source] == name)
        of_source = sum(rows[place][2] for _, place in own)
        asked = config.passes * total * weight / sum(weights)
        often = divmod(asked, of_source)[0]
        rest = asked - often * of_source
        sums = [0]
        for _, place in own:
            sums.append(sums[-1] + rows[place][2])
        count = min(range(len(sums)), key=lambda count: (abs(sums[count] - rest), count))
        for rank, (_, place) in enumerate(own):
            times[place] = int(often) + (rank < count)
    return times


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    sizes=st.tuples(st.integers(1, 400), st.integers(1, 30), st.integers(1, 3)),
    weights=st.tuples(*[st.sampled_from([0.001, 0.1, 0.3, 1.0, 7.0])] * 3),
    passes=st.integers(1, 5),
    num_shards=st.integers(1, 9),
)
def test_reads_equal_a_plain_sort_for_any_cut_into_shards(
    seed: int, sizes: tuple[int, int, int], weights: tuple[float, ...], passes: int, num_shards: int
) -> None:
    documents = corpus(seed, sizes, 50)
    config = mix(passes, **dict(zip(NAMES, weights, strict=True)))
    mixture = mixture_of(config, lambda: reversed(cut(documents, num_shards, seed)))
    times = times_read(documents, mixture)
    assert times.tolist() == times_in_plain_python(documents, config)
    total = int(documents.tokens.sum())
    for source, (name, weight) in enumerate(zip(NAMES, weights, strict=True)):
        own = documents.sources == source
        read = int(np.dot(times[own], documents.tokens[own]))
        asked = passes * total * weight / sum(weights)
        assert abs(read - asked) <= documents.tokens[own].max() / 2 + 1e-6
        assert times[own].max() - times[own].min() <= 1
        facts = mixture.statistics[name]
        assert (facts.train_documents, facts.train_tokens) == (sizes[source], documents.tokens[own].sum())
        assert facts.tokens_read == read
        assert facts.share == pytest.approx(read / np.dot(times, documents.tokens), abs=1e-6)
        assert facts.asked_share == pytest.approx(weight / sum(weights), abs=1e-6)


def test_many_documents_of_one_range() -> None:
    # The leading bits of all words are equal, so the range that is sorted holds every document.
    documents = corpus(1, (500, 20, 2), 30)
    crowded = documents._replace(words=documents.words >> np.uint64(20))
    config = mix(2, novels=0.2, wiki=0.7, law=0.1)
    mixture = mixture_of(config, lambda: iter([crowded]))
    assert times_read(crowded, mixture).tolist() == times_in_plain_python(crowded, config)


def test_sources_without_weights_are_read_once_a_pass_and_others_not() -> None:
    documents = corpus(2, (40, 10, 5), 9)
    calls = 0

    def shards() -> Iterator[SourceTokens]:
        nonlocal calls
        calls += 1
        return iter([documents])

    config = mix(3, novels=None, law=None)
    mixture = mixture_of(config, shards)
    assert calls == 1
    assert times_read(documents, mixture).tolist() == [3] * 40 + [0] * 10 + [3] * 5
    assert mixture.statistics["law"].reads_per_pass == 1.0
    weighted = mix(3, novels=0.01, law=0.99)
    assert times_read_heldout(documents, weighted).tolist() == [3] * 40 + [0] * 10 + [3] * 5


def test_a_source_without_documents_is_refused() -> None:
    with pytest.raises(InputError, match="no training document of the source 'law' has a token"):
        mixture_of(mix(1, novels=0.5, law=0.5), lambda: iter([corpus(3, (5, 5), 9)]))
