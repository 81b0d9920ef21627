"""Plan the rows of a shard, with pure functions of documents, settings and seed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.contract.schemas import CLS, CONTINUATION, MASK, SEP, SPLITS, UNMASKED, LengthBin, Split, length_bins
from pipelines.examples.balancing import deal_rows, group_of
from pipelines.examples.full_sentences import plan_full_sentences
from pipelines.examples.masking import MaskingRules
from pipelines.examples.planned_rows import PlannedRows, TokenizedDocuments, join_rows
from pipelines.examples.sentence_pairs import plan_pairs, rows_of_pairs
from pipelines.mixing.shares import Mixture, SourceTokens, times_read, times_read_heldout
from pipelines.seeding import PURPOSE_MASKS, PURPOSE_MIXTURE, PURPOSE_PAIRS, PURPOSE_ROW_ORDER, derive_keys, key_of
from pipelines.settings.examples import ExampleLengthConfig, ExamplesConfig
from pipelines.wordpiece.token_counts import TokenCounts
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.tokenizer_settings import TokenizerSettings


class ShardNumber(NamedTuple):
    """One documents shard; the files of examples have the same numbers."""

    split: Split
    number: int
    total: int


class ShardText(NamedTuple):
    """The tokens of one documents shard.

    `sources`: int64 [documents], equal for documents that are pieces of one text. `counts`: what tokenising kept and
    lost. `source_numbers`: int64 [documents], of `source_names`; both empty if the sources have no names. `times`:
    int64 [documents], how often each document is read in all passes together; None reads each once a pass.
    """

    documents: TokenizedDocuments
    sources: NDArray[np.int64]
    counts: TokenCounts
    source_names: tuple[str, ...] = ()
    source_numbers: NDArray[np.int64] = np.empty(0, np.int64)
    times: NDArray[np.int64] | None = None

    def tokens_of_sources(self, seed: int) -> SourceTokens:
        """The documents as `pipelines.mixing` has them."""
        documents = self.documents
        words = derive_keys(key_of(seed, PURPOSE_MIXTURE), documents.document_keys)
        tokens = np.diff(documents.sentence_offsets[documents.document_offsets])
        return SourceTokens(self.source_names, self.source_numbers, words, tokens)

    def mixed(self, split: Split, config: ExamplesConfig, mixture: Mixture | None) -> ShardText:
        """The documents that a set of examples reads, with `times`; `mixture` is None if the set has no sources."""
        if mixture is None:
            return self
        documents = self.tokens_of_sources(config.seed)
        is_training = split == "train"
        times = times_read(documents, mixture) if is_training else times_read_heldout(documents, config)
        is_read = times > 0
        return self._replace(
            documents=self.documents.take(is_read), sources=self.sources[is_read], times=times[is_read]
        )


def read_documents(table: pa.Table, tokenizer: WordPieceTokenizer) -> ShardText:
    """Tokenise the documents of one shard; sentences and documents without a token are left out."""
    lists = table["sentences"].combine_chunks()
    tokenized, counts = tokenizer.tokenize_and_count(lists.flatten())
    sentence_starts = lists.offsets.to_numpy().astype(np.int64)
    sentence_starts -= sentence_starts[0]
    not_empty = np.diff(tokenized.offsets) > 0
    kept_before = np.concatenate(([0], np.cumsum(not_empty)))
    document_offsets = kept_before[sentence_starts]
    document_keys = np.frombuffer(b"".join(doc_id[:8] for doc_id in table["doc_id"].to_pylist()), dtype="<u8").astype(
        np.uint64
    )
    has_text = np.diff(document_offsets) > 0
    documents = TokenizedDocuments(
        input_ids=tokenized.input_ids,
        sentence_offsets=np.concatenate((tokenized.offsets[:-1][not_empty], tokenized.offsets[-1:])),
        document_offsets=np.concatenate((document_offsets[:-1][has_text], document_offsets[-1:])),
        document_keys=document_keys[has_text],
    )
    sources = table["source"].combine_chunks().indices.to_numpy().astype(np.int64)
    text = ShardText(documents, sources[has_text], counts)
    if "source_name" not in table.column_names:
        return text
    names = table["source_name"].combine_chunks()
    numbers = names.indices.to_numpy().astype(np.int64)[has_text]
    return text._replace(source_names=tuple(names.dictionary.to_pylist()), source_numbers=numbers)


def plan_examples(
    documents: TokenizedDocuments,
    config: ExamplesConfig,
    max_seq_length: int,
    times: NDArray[np.int64] | None = None,
) -> PlannedRows:
    """All rows of one shard, pass after pass; with `times` (int64 [documents]), read after read of the documents."""
    plans = []
    for number in range(config.passes if times is None else int(times.max(initial=1))):
        cut_key, mask_key = (
            key_of(config.seed, purpose, max_seq_length, number) for purpose in (PURPOSE_PAIRS, PURPOSE_MASKS)
        )
        if config.next_sentence:
            pairs = plan_pairs(documents, cut_key, max_seq_length, config.short_seq_prob, times, number)
            plans.append(rows_of_pairs(documents, pairs, mask_key))
        else:
            is_read = None if times is None else times > number
            plans.append(plan_full_sentences(documents, cut_key, mask_key, max_seq_length, is_read))
    return join_rows(plans)


def masking_rules(config: ExamplesConfig, length: ExampleLengthConfig, tokens: list[str]) -> MaskingRules:
    """The rules of one maximum length, with the ids of a vocabulary."""
    return MaskingRules(
        masked_lm_prob=config.masked_lm_prob,
        max_predictions_per_seq=length.max_predictions_per_seq,
        whole_word=config.masking == "whole_word",
        cls_id=tokens.index(CLS),
        sep_id=tokens.index(SEP),
        mask_id=tokens.index(MASK),
        is_continuation=np.array([token.startswith(CONTINUATION) for token in tokens]),
        is_dynamic=config.masking in UNMASKED,
    )


def metadata_of(
    config: ExamplesConfig,
    length: ExampleLengthConfig,
    length_bin: LengthBin,
    settings: TokenizerSettings,
    vocabulary_size: int,
    vocabulary_sha256: str,
) -> dict[str, str]:
    """Schema metadata of one file of examples."""
    return {
        "vocabulary_sha256": vocabulary_sha256,
        "vocabulary_size": str(vocabulary_size),
        "lowercase": str(settings.lowercase).lower(),
        "max_seq_length": str(length.max_seq_length),
        "max_predictions_per_seq": str(length.max_predictions_per_seq),
        "masked_lm_prob": str(config.masked_lm_prob),
        "masking": config.masking,
        "next_sentence": str(config.next_sentence).lower(),
        "seed": str(config.seed),
        "bin_above": str(length_bin.above),
        "bin_up_to": str(length_bin.up_to),
    }


def random_words(count: int, seed: int, max_seq_length: int, shard: ShardNumber, *parts: int) -> NDArray[np.uint64]:
    """Random words to sort by, uint64 [count]: NumPy's `permutation` may change between versions."""
    key = key_of(seed, PURPOSE_ROW_ORDER, max_seq_length, SPLITS.index(shard.split), shard.number, *parts)
    return np.random.Philox(key=int(key)).random_raw(count)


def deal_shard(
    text: ShardText, shard: ShardNumber, config: ExamplesConfig, max_seq_length: int
) -> tuple[PlannedRows, list[list[NDArray[np.int64]]]]:
    """Plan all rows of a shard and deal them to the files of its group, as `deal_rows` returns them."""
    plan = plan_examples(text.documents, config, max_seq_length, text.times)
    lengths = plan.lengths
    ties = random_words(len(lengths), config.seed, max_seq_length, shard)
    bin_ends = [one.up_to for one in length_bins(max_seq_length, config.num_length_bins)]
    group = group_of(shard.number, shard.total)
    return plan, deal_rows(lengths, ties, bin_ends, group.index(shard.number), len(group))
