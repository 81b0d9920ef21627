"""What the manifest of the vocabulary states about its training corpus, and what is lost with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.results.coverage import UNK_SHARE_WARNED, ratio
from pipelines.statistics.preprocessing import VocabularyStatistics
from pipelines.wordpiece.reference_tokenizer import MAX_CHARACTERS_PER_WORD
from pipelines.wordpiece.token_counts import TokenCounts, added, shares_of
from pipelines.wordpiece.tokenizer import WordPieceTokenizer
from pipelines.wordpiece.tokenizer_settings import TokenizerSettings

MARKS_SHARE_WARNED = 0.08
"""English loses 0.0 %, French 3.6, Swedish 5.3; Hungarian 9.8, Czech 13.6, Thai 19.9, Vietnamese 28.6, Burmese 33.6 of
the characters of the Universal Declaration of Human Rights: in the second group different words become equal."""
UNK_SHARE_REFUSED = 0.5
"""If most tokens are [UNK], always predicting [UNK] is right more often than not, and nothing else is learnt."""

_WORDS_PER_BATCH = 1 << 18


Remedy = Callable[[VocabularyStatistics], str]
"""What to change where characters have no entry, which depends on how the vocabulary is made."""


def statistics_of(
    words: pa.Table, marks_stripped: int, tokens: Sequence[str], settings: TokenizerSettings, remedy: Remedy
) -> VocabularyStatistics:
    """Counts of the training corpus with a vocabulary: what `pipelines.validate` recomputes from the documents.

    Args:
        words: distinct words and their counts, as from `pipelines.wordpiece.word_counts`.
        marks_stripped: number of accents and vowel signs removed from the words.
        tokens: the vocabulary in id order.
    """
    counts = words["count"].to_numpy()
    distinct = words["word"].combine_chunks()
    lengths = pc.utf8_length(distinct).to_numpy(zero_copy_only=False).astype(np.int64)
    total = count_pieces(distinct, counts, tokens, settings)
    characters = int(np.dot(lengths, counts))
    is_long = lengths > MAX_CHARACTERS_PER_WORD
    statistics = VocabularyStatistics(
        size=len(tokens),
        distinct_words=len(counts),
        **shares_of(total._replace(words=int(counts.sum()), characters=characters)),
        distinct_characters=len(set("".join(distinct.to_pylist()))),
        long_words=int(counts[is_long].sum()),
        long_words_characters_share=ratio(int(np.dot(lengths[is_long], counts[is_long])), characters),
        marks_stripped=marks_stripped,
        marks_stripped_share=ratio(marks_stripped, characters + marks_stripped),
        warnings=[],
    )
    return statistics.model_copy(update={"warnings": warnings_of(statistics, remedy)})


def count_pieces(
    words: pa.Array, counts: NDArray[np.int64], tokens: Sequence[str], settings: TokenizerSettings
) -> TokenCounts:
    """What a vocabulary makes of words, each as often as it occurs."""
    tokenizer = WordPieceTokenizer(tokens, *settings)
    starts = range(0, len(words), _WORDS_PER_BATCH)
    batches = [slice(start, start + _WORDS_PER_BATCH) for start in starts]
    return added([TokenCounts(), *(tokenizer.count(words[batch], counts[batch]) for batch in batches)])


def warnings_of(statistics: VocabularyStatistics, remedy: Remedy) -> list[str]:
    """Warnings before training with this vocabulary, each with the setting that changes it."""
    warnings = []
    if statistics.unk_share > UNK_SHARE_WARNED:
        warnings.append(
            f"[UNK] is {statistics.unk_share:.1%} of all tokens and stands for "
            f"{statistics.unk_characters_share:.1%} of the characters: {unk_remedy(statistics, remedy)}"
        )
    if statistics.marks_stripped_share > MARKS_SHARE_WARNED:
        warnings.append(
            f"lower-casing strips {statistics.marks_stripped_share:.1%} of the characters, accents and vowel signs, "
            "as BERT does; set vocabulary.strip_accents = false to keep them"
        )
    return warnings


def unk_remedy(statistics: VocabularyStatistics, remedy: Remedy) -> str:
    """Why words are [UNK], and what changes it."""
    if 2 * statistics.long_words_characters_share > statistics.unk_characters_share:
        return (
            f"{statistics.long_words:,} words are longer than {MAX_CHARACTERS_PER_WORD} characters and become [UNK] "
            "with any vocabulary, as in a language written without spaces; put spaces between the words of "
            "documents.sources.inputs"
        )
    return remedy(statistics)
