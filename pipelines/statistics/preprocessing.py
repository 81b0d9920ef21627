"""Statistics of documents, vocabulary and examples."""

from __future__ import annotations

from pydantic import Field

from pipelines.contract.statistics import StageWarnings, Statistics

_PIECES_PER_WORD_OF_SINGLE_PIECES = 1.02


class DecontaminationStatistics(Statistics):
    """What was looked for in the documents, and where it was found."""

    evaluation_texts: int
    short_texts: int
    """Of fewer words than an n-gram: these are not looked for."""
    evaluation_grams: int
    """Distinct n-grams."""
    documents_by_file: dict[str, int]
    """Documents dropped, by the evaluation file with the first n-gram that they share."""


class DocumentsStatistics(Statistics):
    """What became of a corpus; characters and sentences are those of all documents that were kept."""

    documents_read: int
    documents_kept: int
    documents_rejected: int
    rejected_by_reason: dict[str, int]
    first_rejects: dict[str, list[list[str]]]
    """By reason: source and detail of some of the rejected texts."""
    cleaning: dict[str, int]
    """How often each change was made to a text."""
    train_documents: int
    heldout_documents: int
    sentences: int
    characters: int
    decontamination: DecontaminationStatistics | None = None
    """Set if evaluation data were looked for."""


class TextFit(Statistics):
    """How well a vocabulary fits a text. Characters are those of words: white space is not among them."""

    words: int
    tokens: int
    unk: int
    characters: int
    unk_characters: int
    pieces_per_word: float
    unk_share: float
    """Of the tokens."""
    unk_characters_share: float

    @property
    def has_only_single_pieces(self) -> bool:
        """Whether whole-word masking draws what masking of single tokens draws, as in Chinese."""
        return self.pieces_per_word < _PIECES_PER_WORD_OF_SINGLE_PIECES


class VocabularyExtension(Statistics):
    """Words of the corpus that were added to a vocabulary."""

    words_added: int
    into_unused: int
    appended: int
    pieces_per_word_before: float
    unk_share_before: float
    examples: list[str]
    """The most useful of them."""
    replaced: dict[str, str]
    """The word that replaces each `[unusedN]` entry."""


class VocabularyStatistics(TextFit, StageWarnings):
    """A vocabulary, and how well it fits the training documents."""

    size: int
    distinct_words: int
    distinct_characters: int
    long_words: int
    """More characters than the tokenizer takes: each becomes [UNK]."""
    long_words_characters_share: float
    marks_stripped: int
    """Accents and vowel signs that lower-casing takes away."""
    marks_stripped_share: float
    origin: str | None = None
    """Where it was brought from, as the recipe has it; None if it was trained."""
    extension: VocabularyExtension | None = None


class SplitRows(Statistics):
    """Sums over the rows of one split."""

    examples: int
    tokens: int
    random_next: int


class RowCounts(SplitRows):
    """Counts of rows, which add up over batches and files; the files of the examples have these too.

    A random token that happens to equal the original counts as kept, and a random [MASK] as [MASK]. `unk` counts [UNK]
    as it stood before masking, `masked_unk` where it is to be predicted.
    """

    masked: int
    masked_as_mask: int
    masked_as_kept: int
    masked_as_random: int
    unk: int
    masked_unk: int


class TokenLosses(Statistics):
    """What becomes of the documents' tokens when rows of one maximum length are cut from them; adds up over shards."""

    sentences: int
    long_sentences: int
    """With more tokens than a row has room for."""
    tokens_to_place: int
    """Each counted once a pass."""
    tokens_cut: int
    """How many of these no row holds."""
    same_document_random_next: int
    """Random next sentences from another piece of the same text."""


class BinBalance(Statistics):
    """Sums over the training files of a length bin, and by which share the one that differs most is off their mean."""

    train_examples: int
    train_tokens: int
    most_off_mean_examples: float
    most_off_mean_tokens: float


class LengthStatistics(RowCounts, TokenLosses):
    """The examples of one maximum length."""

    random_next_share: float
    masked_share: float
    mask_token_share: float
    kept_token_share: float
    random_token_share: float
    """Of the masked tokens, as the two before it."""
    unk_share: float
    masked_unk_share: float
    tokens_cut_share: float
    long_sentences_share: float
    same_document_random_next_share: float
    shortest_example: int
    longest_example: int
    mean_length: float
    length_histogram: dict[str, int]
    """Rows by number of tokens; a bar's name is its greatest length, with leading zeros."""
    splits: dict[str, SplitRows]
    bins: dict[str, BinBalance]


class ExamplesText(TextFit):
    """The documents that examples were made from."""

    train_documents: int
    heldout_documents: int


class SourceStatistics(Statistics):
    """How often a set of examples reads a source; a document's tokens are those of its text."""

    train_documents: int
    train_tokens: int
    """Each counted once."""
    tokens_read: int
    """In all passes; random next sentences are not among them."""
    reads_per_pass: float
    asked_share: float
    share: float
    """Of the tokens that the set reads, as `asked_share`."""


class SetStatistics(Statistics):
    """One of `examples.sets`."""

    lengths: dict[str, LengthStatistics]
    sources: dict[str, SourceStatistics] = Field(default_factory=dict)


class ExamplesStatistics(StageWarnings):
    """The examples of all lengths; `lengths` has the maximum length as text, as JSON wants it.

    These and `sources` are of the section's own set, and absent `sources` are all, each document read once a pass.
    """

    lengths: dict[str, LengthStatistics]
    text: ExamplesText
    sources: dict[str, SourceStatistics] = Field(default_factory=dict)
    sets: dict[str, SetStatistics] = Field(default_factory=dict)

    def of_length(self, max_seq_length: int, examples: str | None = None) -> LengthStatistics | None:
        """None where no examples of this length were made; `examples` names a set."""
        lengths = self.lengths if examples is None else self.sets[examples].lengths if examples in self.sets else {}
        return lengths.get(str(max_seq_length))

    def all_lengths(self) -> dict[str, LengthStatistics]:
        """Of every set, by the directory below the stage's without the word "length": `128`, `NAME/128`."""
        own = dict(self.lengths)
        return own | {f"{name}/{most}": one for name, of in self.sets.items() for most, one in of.lengths.items()}

    def all_sources(self) -> dict[str | None, dict[str, SourceStatistics]]:
        """Of every set that has weights or names sources, by the set's name; None is the section's own."""
        found: dict[str | None, dict[str, SourceStatistics]] = {None: self.sources}
        found |= {name: of.sources for name, of in self.sets.items()}
        return {name: sources for name, sources in found.items() if sources}
