"""Transforms of job 2: word counts of shards, their sum, and the vocabulary trained from it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
from tokenizers import pre_tokenizers

from pipelines.contract import storage
from pipelines.contract.workspace import TOKENIZER_CONFIG_NAME, TOKENIZER_NAME, VOCABULARY_NAME
from pipelines.jobs.arrow_files import read_table
from pipelines.jobs.runner import limit_worker_threads
from pipelines.wordpiece.chunk_table import ChunkTable
from pipelines.wordpiece.reference_tokenizer import build_normalizer, build_tokenizer
from pipelines.wordpiece.tokenizer_config import BERT_TOKENIZER, ROLES, as_file, bert_settings, tokenizer_config
from pipelines.wordpiece.tokenizer_settings import AddedToken, TokenizerSettings

_SCHEMA = pa.schema([("word", pa.string()), ("count", pa.int64())])
_MARKS_KEY = b"marks_stripped"


class _Marks(dict[str, int]):
    """How many non-spacing marks a character loses when accents are stripped, computed once per character."""

    def __missing__(self, character: str) -> int:
        parts = unicodedata.normalize("NFD", character)
        return self.setdefault(character, sum(unicodedata.category(part) == "Mn" for part in parts))


def count_words(
    texts: pa.Array, lowercase: bool, strip_accents: bool | None, tokenize_chinese_chars: bool = True
) -> pa.Table:
    """Words from BERT's normaliser and pre-tokeniser, with their counts, in word order.

    Each distinct chunk of text is normalised once; most are words already. The table also holds its `marks_stripped`.
    """
    table = ChunkTable(lowercase)
    chunks, _ = table.chunk_numbers(texts)
    counts = np.bincount(chunks, minlength=table.size)
    normalizer = build_normalizer(lowercase, strip_accents, tokenize_chinese_chars)
    splitter = pre_tokenizers.BertPreTokenizer()
    strips = lowercase if strip_accents is None else strip_accents
    words: dict[str, int] = {}
    marks_of, marks = _Marks(), 0
    for number, count in enumerate(counts.tolist()):
        chunk = table.key(number)
        if chunk.isascii() and chunk.isprintable():
            words[chunk] = words.get(chunk, 0) + count
            continue
        if strips:
            marks += count * sum(map(marks_of.__getitem__, chunk))
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(chunk)):
            words[word] = words.get(word, 0) + count
    return _with_marks(pa.table([list(words), list(words.values())], schema=_SCHEMA).sort_by("word"), marks)


def marks_stripped(words: pa.Table) -> int:
    """Accents and vowel signs that stripping took from the texts, counted over all occurrences."""
    return int((words.schema.metadata or {}).get(_MARKS_KEY, b"0"))


def _with_marks(words: pa.Table, marks: int) -> pa.Table:
    return words.replace_schema_metadata({_MARKS_KEY: str(marks).encode()})


def merge_counts(tables: Iterable[pa.Table]) -> pa.Table:
    """Add up tables of word counts; the result is in word order."""
    tables = list(tables)
    together = pa.concat_tables([_SCHEMA.empty_table(), *tables])
    summed = together.group_by("word", use_threads=False).aggregate([("count", "sum")])
    in_order = summed.rename_columns({"count_sum": "count"}).select(["word", "count"]).sort_by("word")
    return _with_marks(in_order, sum(map(marks_stripped, tables)))


class CountShard(beam.DoFn):
    """File name of a documents shard -> table of word counts; added tokens are not looked for in the texts."""

    def __init__(self, documents_directory: str, settings: TokenizerSettings):
        self._documents_directory = documents_directory
        self._casing = settings[:3]

    def setup(self) -> None:
        limit_worker_threads()

    def process(self, name: str) -> Iterator[pa.Table]:
        texts = read_table(storage.join(self._documents_directory, name))["sentences"].combine_chunks().flatten()
        yield count_words(texts, *self._casing)


class SumCounts(beam.CombineFn):
    """Add up tables of word counts; lifted, so that each worker sends one table."""

    _TABLES_BEFORE_MERGE = 8

    def create_accumulator(self) -> list[pa.Table]:
        return []

    def add_input(self, accumulator: list[pa.Table], table: pa.Table) -> list[pa.Table]:
        accumulator.append(table)
        return accumulator if len(accumulator) < self._TABLES_BEFORE_MERGE else [merge_counts(accumulator)]

    def merge_accumulators(self, accumulators: Iterable[list[pa.Table]]) -> list[pa.Table]:
        return [merge_counts(table for accumulator in accumulators for table in accumulator)]

    def compact(self, accumulator: list[pa.Table]) -> list[pa.Table]:
        return [merge_counts(accumulator)]

    def extract_output(self, accumulator: list[pa.Table]) -> pa.Table:
        return merge_counts(accumulator)


def tokenizer_files(
    tokens: Sequence[str],
    lowercase: bool,
    strip_accents: bool | None,
    tokenize_chinese_chars: bool = True,
    added_tokens: Sequence[AddedToken] = (),
) -> dict[str, bytes]:
    """The files of a vocabulary by name, which `transformers` loads as a BertTokenizer with these settings."""
    built = build_tokenizer(tokens, lowercase, strip_accents, tokenize_chinese_chars, added_tokens)
    tokenizer: str = built.to_str(pretty=True)
    settings, added = (
        bert_settings(lowercase, strip_accents, tokenize_chinese_chars),
        json.loads(tokenizer)["added_tokens"],
    )
    # The maximum length depends on the model.
    config = tokenizer_config(BERT_TOKENIZER, settings, ROLES, added, model_max_length=None)
    return {
        VOCABULARY_NAME: "".join(f"{token}\n" for token in tokens).encode(),
        TOKENIZER_NAME: tokenizer.encode(),
        TOKENIZER_CONFIG_NAME: as_file(config),
    }
