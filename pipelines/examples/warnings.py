"""Warnings about examples before training on them, and reasons to refuse them.

Pure functions of the manifest's statistics, so `pipelines.validate` computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.contract.manifest import Manifest
from pipelines.contract.schemas import WHOLE_WORDS
from pipelines.contract.workspace import BROUGHT_INPUT
from pipelines.results.coverage import UNK_SHARE_WARNED
from pipelines.settings.examples import ExamplesConfig
from pipelines.statistics.preprocessing import ExamplesStatistics, ExamplesText, LengthStatistics, SourceStatistics
from pipelines.wordpiece.statistics import UNK_SHARE_REFUSED

TOKENS_CUT_WARNED = 0.25
"""The released algorithm itself cuts 12 % of the tokens of English novels at length 128, and 3 % at 512."""
SAME_DOCUMENT_WARNED = 0.01
"""This share of wrong labels costs the next-sentence task about as much accuracy."""
FEWEST_OF_A_LABEL = 0.1
"""A model that always gives the same answer is then right nine times in ten."""
MANY_READS = 16.0
"""Repeated text is worth as much as new text up to about 4 reads, and nothing after about 16 (Muennighoff et al., 2023,
section 6)."""
SHARE_MISSED_WARNED = 0.01
"""A share is realised by complete documents, so only few or long ones miss it by so much."""
_OF_TOKENS = {"whole_word": "static", "dynamic_whole_word": "dynamic"}
"""The masking of single tokens that draws as one of whole words does."""

FEWEST_HELDOUT_DOCUMENTS = 20
"""The word-order task takes its dev sentences from a fifth of them, by hash: with fewer, it may get none."""


TRAINED = "raise vocabulary.alphabet_size and vocabulary.size"
"""What to change where a vocabulary that was trained makes [UNK] of words."""


def unk_remedy(vocabulary: Manifest) -> str:
    """What to change where this vocabulary makes [UNK] of words."""
    if BROUGHT_INPUT not in vocabulary.inputs:
        return TRAINED
    origin, added = vocabulary.statistics.get("origin"), vocabulary.config.get("extend")
    return (
        f"the vocabulary of vocabulary.from = {origin} does not fit these texts: raise vocabulary.extend = {added}, or "
        "train a vocabulary"
    )


def refusal_of(statistics: ExamplesStatistics) -> str | None:
    """Why these examples cannot be trained on, with the remedy; None if they can."""
    text = statistics.text
    if text.unk_share > UNK_SHARE_REFUSED:
        return (
            f"examples: [UNK] is {text.unk_share:.1%} of all tokens, so there is nothing to learn: the vocabulary "
            "is not that of these documents; train it on them, or raise vocabulary.alphabet_size"
        )
    for length, facts in statistics.all_lengths().items():
        if not facts.splits["train"].examples:
            return (
                f"examples: no training row of length {length} came of {text.train_documents:,} training documents "
                f"with {text.tokens:,} tokens; give documents.sources more text, or lower documents.heldout_share "
                "or documents.num_shards"
            )
    return None


def warnings_of(
    lengths: Mapping[str, LengthStatistics], text: ExamplesText, config: ExamplesConfig, remedy: str = TRAINED
) -> list[str]:
    """Warnings, each with the setting that changes it.

    Args:
        lengths: the statistics of each maximum length, as in the manifest.
        text: those of the documents' text.
        remedy: `unk_remedy` of the vocabulary.
    """
    warnings = []
    if text.unk_share > UNK_SHARE_WARNED:
        warnings.append(
            f"[UNK] is {text.unk_share:.1%} of all tokens and stands for {text.unk_characters_share:.1%} of the "
            f"characters; {remedy}, and see the warnings of the vocabulary"
        )
    if config.masking in WHOLE_WORDS and text.has_only_single_pieces:
        warnings.append(
            f"whole-word masking has no effect: words have {text.pieces_per_word:.2f} pieces each, as in Chinese, "
            f"where each character is a word; examples.masking = {_OF_TOKENS[config.masking]!r} gives the same"
        )
    if not text.heldout_documents:
        warnings.append(
            "no document is held out: losses on unseen text cannot be measured, and the fine-tuning task word-order "
            "has no sentences; raise documents.heldout_share, or give more documents"
        )
    elif text.heldout_documents < FEWEST_HELDOUT_DOCUMENTS:
        warnings.append(
            f"only {text.heldout_documents} documents are held out: held-out losses say little, and the fine-tuning "
            "task word-order may have no dev sentences; raise documents.heldout_share, or give more documents"
        )
    for length, facts in lengths.items():
        warnings += [f"length {length}: {line}" for line in _of_length(facts, config, bool(text.heldout_documents))]
    return warnings


def mixture_warnings(sources: Mapping[str, SourceStatistics]) -> list[str]:
    """Warnings about a set's mixture."""
    missed = [
        f"the source {name!r} gives {facts.share:.1%} of the tokens instead of {facts.asked_share:.1%}: its documents, "
        f"of {facts.train_tokens // facts.train_documents:,} tokens on average, are too long to come nearer; set "
        "documents.max_characters, add texts, or raise examples.passes"
        for name, facts in sources.items()
        if abs(facts.share - facts.asked_share) > SHARE_MISSED_WARNED
    ]
    return missed + [
        f"each document of the source {name!r} is read {facts.reads_per_pass:.1f} times a pass to give it "
        f"{facts.share:.1%} of the tokens; lower its weight, or add texts to it"
        for name, facts in sources.items()
        if facts.reads_per_pass > MANY_READS
    ]


def _of_length(facts: LengthStatistics, config: ExamplesConfig, has_heldout: bool) -> list[str]:
    train, lines = facts.splits["train"], []
    if has_heldout and not facts.splits["heldout"].examples:
        lines.append("no held-out row, so its held-out loss cannot be measured; raise documents.heldout_share")
    if facts.tokens_cut_share > TOKENS_CUT_WARNED:
        remedy = "raise max_seq_length in examples.lengths"
        if facts.long_sentences:
            remedy += ", or look at documents.sources.language: sentences may not have been told apart"
        lines.append(
            f"{facts.tokens_cut_share:.1%} of the tokens are cut off and in no row; {facts.long_sentences:,} of "
            f"{facts.sentences:,} sentences are longer than a row; {remedy}"
        )
    if config.next_sentence and train.examples:
        lines += _of_labels(facts, train.random_next / train.examples)
    return lines


def _of_labels(facts: LengthStatistics, random_share: float) -> list[str]:
    lines = []
    if random_share < FEWEST_OF_A_LABEL:
        lines.append(
            f"{random_share:.1%} of the next sentences are random, so next-sentence accuracy is {1 - random_share:.3f} "
            "without learning: random ones come from other documents of the same shard; lower documents.num_shards, "
            "give more documents, or set examples.next_sentence = false"
        )
    if random_share > 1 - FEWEST_OF_A_LABEL:
        lines.append(
            f"{random_share:.1%} of the next sentences are random, so next-sentence accuracy is {random_share:.3f} "
            "without learning: most sentences fill a row and have no true continuation in it; raise max_seq_length in "
            "examples.lengths, or set examples.next_sentence = false"
        )
    if facts.same_document_random_next_share > SAME_DOCUMENT_WARNED:
        lines.append(
            f"{facts.same_document_random_next_share:.1%} of the random next sentences come from another piece of "
            "the same text, so their label is wrong; raise documents.max_characters, lower documents.num_shards, or "
            "set examples.next_sentence = false"
        )
    return lines
