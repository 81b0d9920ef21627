"""Transforms of job 3: a shard of documents becomes files of masked next-sentence pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from numpy.typing import NDArray

from pipelines import __version__, storage
from pipelines.arrow_files import EXAMPLES_PER_BATCH, examples_table, read_table, write_table
from pipelines.config import ExampleLengthConfig, ExamplesConfig, VocabularyConfig
from pipelines.contract import (
    CLS,
    MASK,
    SEP,
    VOCABULARY_NAME,
    FileRecord,
    Manifest,
    StageKey,
    length_directory,
    record_of,
    write_manifest,
)
from pipelines.masking import MaskedExamples, MaskingRules, build_examples
from pipelines.runners import limit_worker_threads
from pipelines.seeding import PURPOSE_MASKS, PURPOSE_PAIRS, PURPOSE_ROW_ORDER, key_of
from pipelines.sentence_pairs import TokenizedDocuments, plan_pairs
from pipelines.stages import DOCUMENTS, EXAMPLES, VOCABULARY
from pipelines.wordpiece import WordPieceTokenizer


def read_documents(table: pa.Table, tokenizer: WordPieceTokenizer) -> TokenizedDocuments:
    """Tokenise the documents of one shard; sentences and documents without a token are left out."""
    lists = table["sentences"].combine_chunks()
    tokenized = tokenizer.tokenize(lists.flatten())
    sentence_starts = lists.offsets.to_numpy().astype(np.int64)
    sentence_starts -= sentence_starts[0]
    not_empty = np.diff(tokenized.offsets) > 0
    kept_before = np.concatenate(([0], np.cumsum(not_empty)))
    document_offsets = kept_before[sentence_starts]
    document_keys = np.frombuffer(b"".join(doc_id[:8] for doc_id in table["doc_id"].to_pylist()), dtype="<u8").astype(
        np.uint64
    )
    has_text = np.diff(document_offsets) > 0
    return TokenizedDocuments(
        input_ids=tokenized.input_ids,
        sentence_offsets=np.concatenate((tokenized.offsets[:-1][not_empty], tokenized.offsets[-1:])),
        document_offsets=np.concatenate((document_offsets[:-1][has_text], document_offsets[-1:])),
        document_keys=document_keys[has_text],
    )


def examples_of(
    documents: TokenizedDocuments,
    seed: int,
    passes: int,
    max_seq_length: int,
    short_seq_prob: float,
    rules: MaskingRules,
) -> MaskedExamples:
    """All examples of one shard, over all passes, in random order."""
    plans, keys = [], []
    for number in range(passes):
        plan = plan_pairs(
            documents, key_of(seed, PURPOSE_PAIRS, max_seq_length, number), max_seq_length, short_seq_prob
        )
        plans.append(plan)
        keys.append(np.full(len(plan), key_of(seed, PURPOSE_MASKS, max_seq_length, number), np.uint64))
    pairs, pass_keys = np.concatenate(plans), np.concatenate(keys)
    # Sorting a counter's raw words, because NumPy's `permutation` may change from version to version.
    words = np.random.Philox(key=int(key_of(seed, PURPOSE_ROW_ORDER, max_seq_length))).random_raw(len(pairs))
    order = np.argsort(words, kind="stable")
    return build_examples(documents, pairs[order], pass_keys[order], rules)


def statistics_of(examples: MaskedExamples, mask_id: int) -> dict[str, Any]:
    """Counts of one file, which add up over files."""
    replaced = examples.input_ids[flat_positions(examples)]
    is_mask = replaced == mask_id
    is_kept = (replaced == examples.masked_lm_ids) & ~is_mask
    return {
        "examples": len(examples.next_sentence_label),
        "tokens": len(examples.input_ids),
        "random_next": int(examples.next_sentence_label.sum()),
        "masked": len(replaced),
        "masked_as_mask": int(is_mask.sum()),
        "masked_as_kept": int(is_kept.sum()),
        "masked_as_random": int((~is_mask & ~is_kept).sum()),
    }


def flat_positions(examples: MaskedExamples) -> NDArray[np.int64]:
    """Where the predicted tokens of all rows lie in `input_ids`."""
    per_row = np.diff(examples.masked_lm_offsets)
    return np.repeat(examples.offsets[:-1], per_row) + examples.masked_lm_positions


class BuildShard(beam.DoFn):
    """File name of a documents shard -> `FileRecord` of its examples, one a maximum length."""

    def __init__(self, directories: dict[str, str], config: ExamplesConfig, vocabulary: VocabularyConfig, sha256: str):
        self._directories = directories
        self._config = config
        self._vocabulary = vocabulary
        self._vocabulary_sha256 = sha256

    def setup(self) -> None:
        limit_worker_threads()
        text = storage.read_bytes(storage.join(self._directories[VOCABULARY], VOCABULARY_NAME)).decode()
        self._tokens = text.split("\n")[:-1]
        self._tokenizer = WordPieceTokenizer(self._tokens, self._vocabulary.lowercase, self._vocabulary.strip_accents)

    def process(self, name: str) -> Iterator[FileRecord]:
        documents = read_documents(read_table(storage.join(self._directories[DOCUMENTS], name)), self._tokenizer)
        for length in self._config.lengths:
            examples = examples_of(
                documents,
                self._config.seed,
                self._config.passes,
                length.max_seq_length,
                self._config.short_seq_prob,
                self._rules(length),
            )
            table = examples_table(examples, len(self._tokens), self._metadata(length))
            path = f"{length_directory(length.max_seq_length)}/{name}"
            write_table(storage.join(self._directories[EXAMPLES], path), table, EXAMPLES_PER_BATCH)
            statistics = statistics_of(examples, self._tokens.index(MASK))
            Metrics.counter(EXAMPLES, "examples").inc(statistics["examples"])
            Metrics.counter(EXAMPLES, "tokens").inc(statistics["tokens"])
            yield record_of(self._directories[EXAMPLES], path, table.num_rows, statistics)

    def _rules(self, length: ExampleLengthConfig) -> MaskingRules:
        return MaskingRules(
            masked_lm_prob=self._config.masked_lm_prob,
            max_predictions_per_seq=length.max_predictions_per_seq,
            whole_word=self._config.masking == "whole-word",
            cls_id=self._tokens.index(CLS),
            sep_id=self._tokens.index(SEP),
            mask_id=self._tokens.index(MASK),
            is_continuation=np.array([token.startswith("##") for token in self._tokens]),
        )

    def _metadata(self, length: ExampleLengthConfig) -> dict[str, str]:
        return {
            "vocabulary_sha256": self._vocabulary_sha256,
            "vocabulary_size": str(len(self._tokens)),
            "lowercase": str(self._vocabulary.lowercase).lower(),
            "max_seq_length": str(length.max_seq_length),
            "max_predictions_per_seq": str(length.max_predictions_per_seq),
            "masked_lm_prob": str(self._config.masked_lm_prob),
            "masking": self._config.masking,
            "seed": str(self._config.seed),
        }


class CompleteExamples(beam.DoFn):
    """All `FileRecord` -> `Manifest`: add up the statistics of each length and complete the stage."""

    def __init__(self, directory: str, key: StageKey, config: ExamplesConfig):
        self._directory = directory
        self._key = key
        self._config = config

    def process(self, files: list[FileRecord]) -> Iterator[Manifest]:
        lengths = [length.max_seq_length for length in self._config.lengths]
        manifest = self._key.manifest(files, {"lengths": summary_of_lengths(files, lengths)}, __version__)
        write_manifest(self._directory, manifest)
        yield manifest


def summary_of_lengths(files: list[FileRecord], lengths: list[int]) -> dict[str, dict[str, Any]]:
    """The statistics of all files of each maximum length, added up, with the shares that people ask for."""
    return {str(length): _summary(files, length_directory(length)) for length in lengths}


def _summary(files: list[FileRecord], directory: str) -> dict[str, Any]:
    of_length = [file.statistics for file in files if file.name.startswith(f"{directory}/")]
    total = {name: sum(statistics[name] for statistics in of_length) for name in of_length[0]}
    return total | {
        "random_next_share": _share(total["random_next"], total["examples"]),
        "masked_share": _share(total["masked"], total["tokens"]),
        "mask_token_share": _share(total["masked_as_mask"], total["masked"]),
        "kept_token_share": _share(total["masked_as_kept"], total["masked"]),
        "random_token_share": _share(total["masked_as_random"], total["masked"]),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
