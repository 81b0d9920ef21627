"""Plan the rows of a shard, with pure functions of documents, settings and seed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.contract.schemas import CLS, MASK, SEP, SPLITS, UNMASKED, LengthBin, Split, length_bins
from pipelines.examples.balancing import deal_rows, group_of
from pipelines.examples.full_sentences import plan_full_sentences
from pipelines.examples.masking import MaskingRules
from pipelines.examples.planned_rows import PlannedRows, TokenizedDocuments, join_rows
from pipelines.examples.sentence_pairs import plan_pairs, rows_of_pairs
from pipelines.seeding import PURPOSE_MASKS, PURPOSE_PAIRS, PURPOSE_ROW_ORDER, key_of
from pipelines.settings.examples import ExampleLengthConfig, ExamplesConfig
from pipelines.settings.vocabulary import VocabularyConfig
from pipelines.wordpiece.token_counts import TokenCounts
from pipelines.wordpiece.tokenizer import WordPieceTokenizer


class ShardNumber(NamedTuple):
    """One documents shard; the files of examples have the same numbers."""

    split: Split
    number: int
    total: int


class ShardText(NamedTuple):
    """The tokens of one documents shard.

    `sources`: int64 [documents], equal for documents that are pieces of one text. `counts`: what tokenising kept and
    lost.
    """

    documents: TokenizedDocuments
    sources: NDArray[np.int64]
    counts: TokenCounts


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
    return ShardText(documents, sources[has_text], counts)


def plan_examples(documents: TokenizedDocuments, config: ExamplesConfig, max_seq_length: int) -> PlannedRows:
    """All rows of one shard, pass after pass."""
    plans = []
    for number in range(config.passes):
        cut_key, mask_key = (
            key_of(config.seed, purpose, max_seq_length, number) for purpose in (PURPOSE_PAIRS, PURPOSE_MASKS)
        )
        if config.next_sentence:
            pairs = plan_pairs(documents, cut_key, max_seq_length, config.short_seq_prob)
            plans.append(rows_of_pairs(documents, pairs, mask_key))
        else:
            plans.append(plan_full_sentences(documents, cut_key, mask_key, max_seq_length))
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
        is_continuation=np.array([token.startswith("##") for token in tokens]),
        is_dynamic=config.masking in UNMASKED,
    )


def metadata_of(
    config: ExamplesConfig,
    length: ExampleLengthConfig,
    length_bin: LengthBin,
    vocabulary: VocabularyConfig,
    vocabulary_size: int,
    vocabulary_sha256: str,
) -> dict[str, str]:
    """Schema metadata of one file of examples."""
    return {
        "vocabulary_sha256": vocabulary_sha256,
        "vocabulary_size": str(vocabulary_size),
        "lowercase": str(vocabulary.lowercase).lower(),
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
    documents: TokenizedDocuments, shard: ShardNumber, config: ExamplesConfig, max_seq_length: int
) -> tuple[PlannedRows, list[list[NDArray[np.int64]]]]:
    """Plan all rows of a shard and deal them to the files of its group, as `deal_rows` returns them."""
    plan = plan_examples(documents, config, max_seq_length)
    lengths = plan.lengths
    ties = random_words(len(lengths), config.seed, max_seq_length, shard)
    bin_ends = [one.up_to for one in length_bins(max_seq_length, config.num_length_bins)]
    group = group_of(shard.number, shard.total)
    return plan, deal_rows(lengths, ties, bin_ends, group.index(shard.number), len(group))
