"""Find the mixtures of a job: the tokens of each shard's documents go through files, which one worker reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipelines.contract.workspace import TOKENS_GROUP
from pipelines.jobs.arrow_files import read_table, write_table
from pipelines.mixing.shares import Mixture, SourceTokens, mixture_of
from pipelines.results.unfinished import scratch_uri
from pipelines.settings.examples import ExamplesConfig

_SCHEMA = pa.schema(
    [("source_name", pa.dictionary(pa.int32(), pa.string())), ("word", pa.uint64()), ("tokens", pa.int64())]
)
_DOCUMENTS_PER_BATCH = 1 << 20


def tokens_name(shard: str) -> str:
    """Scratch file of the tokens of a shard's documents."""
    return f"{TOKENS_GROUP}/{shard}"


def write_tokens(directory: str, shard: str, documents: SourceTokens) -> None:
    """Write the scratch file of a shard."""
    names = pa.DictionaryArray.from_arrays(
        pa.array(documents.sources.astype(np.int32)), pa.array(documents.names, pa.string())
    )
    table = pa.Table.from_arrays([names, pa.array(documents.words), pa.array(documents.tokens)], schema=_SCHEMA)
    write_table(scratch_uri(directory, tokens_name(shard)), table, _DOCUMENTS_PER_BATCH)


def read_tokens(directory: str, shard: str) -> SourceTokens:
    """Read what `write_tokens` wrote."""
    table = read_table(scratch_uri(directory, tokens_name(shard)))
    names = table["source_name"].combine_chunks()
    return SourceTokens(
        names.dictionary.to_pylist(),
        names.indices.to_numpy().astype(np.int64),
        table["word"].to_numpy(),
        table["tokens"].to_numpy(),
    )


class ChooseReads(beam.DoFn):
    """Ignored element -> the mixture of each set that has sources, by the set's name ("" for the section's own)."""

    def __init__(self, directory: str, sets: Mapping[str, ExamplesConfig]):
        self._directory = directory
        self._sets = sets

    def process(self, _: None, shards: list[str]) -> Iterator[dict[str, Mixture]]:
        names = sorted(shards)
        yield {
            name: mixture_of(config, lambda: (read_tokens(self._directory, shard) for shard in names))
            for name, config in self._sets.items()
        }
