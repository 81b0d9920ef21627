"""How well a vocabulary fits a text: the figures that the manifests of vocabulary, examples and trials state alike."""

from __future__ import annotations

from pipelines.statistics.preprocessing import TextFit

UNK_SHARE_WARNED = 0.01
"""From about one token in a hundred on, [UNK] is among the ten most frequent tokens."""


def fit_of(words: int, tokens: int, unk: int, characters: int, unk_characters: int) -> TextFit:
    """The counts of a text, and the shares of interest."""
    return TextFit(
        words=words,
        tokens=tokens,
        unk=unk,
        characters=characters,
        unk_characters=unk_characters,
        pieces_per_word=ratio(tokens, words),
        unk_share=ratio(unk, tokens),
        unk_characters_share=ratio(unk_characters, characters),
    )


def fit_in_words(fit: TextFit) -> str:
    """The shares, for the closing line of a stage."""
    return (
        f"{fit.pieces_per_word:.2f} pieces a word, [UNK] {fit.unk_share:.2%} of the tokens and "
        f"{fit.unk_characters_share:.2%} of the characters"
    )


def ratio(part: int, whole: int) -> float:
    """`part / whole` to six places; 0 if `whole` is 0."""
    return round(part / whole, 6) if whole else 0.0
