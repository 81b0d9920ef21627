"""How well a vocabulary fits the texts of a task: the same counts as in the manifests of vocabulary and examples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pipelines.contract.schemas import CONTINUATION, UNK
from pipelines.results.coverage import UNK_SHARE_WARNED, fit_in_words, fit_of
from pipelines.statistics.preprocessing import TextFit
from training.settings.finetuning import FinetuningConfig

_SPACES = re.compile(r"[ \t\r\n]+")


def coverage_of(tokenizer: Any, texts: Iterable[str]) -> TextFit:
    """Count words, pieces and [UNK] over texts.

    BERT's tokenizer processes what stands between white space independently, so each distinct piece of text is encoded
    once. An added token with white space in it is counted by its parts.

    Args:
        tokenizer: of `tokenizers`, as `LoadedTokenizer.for_texts` returns it.
    """
    occurrences = Counter(part for text in texts for part in _SPACES.split(text) if part)
    words = tokens = unk = unk_characters = 0
    encodings = tokenizer.encode_batch([*occurrences], add_special_tokens=False)
    for count, encoding in zip(occurrences.values(), encodings, strict=True):
        pieces = encoding.tokens
        tokens += count * len(pieces)
        words += count * sum(not piece.startswith(CONTINUATION) or piece == CONTINUATION for piece in pieces)
        if UNK in pieces:
            lost = [end - start for piece, (start, end) in zip(pieces, encoding.offsets, strict=True) if piece == UNK]
            unk += count * len(lost)
            unk_characters += count * sum(lost)
    characters = sum(count * len(part) for part, count in occurrences.items())
    return fit_of(words, tokens, unk, characters, unk_characters)


def coverage_lines(fit: TextFit, config: FinetuningConfig) -> list[str]:
    """One line on the texts and, if much of them is lost, one that names the setting to change."""
    lines = [f"train and dev texts: {fit_in_words(fit)}"]
    if fit.unk_share > UNK_SHARE_WARNED:
        remedy = (
            "the workspace's vocabulary does not fit them: raise vocabulary.alphabet_size and vocabulary.size or, with "
            "vocabulary.from, vocabulary.extend"
            if config.encoder is None
            else f"the vocabulary of finetuning.encoder = {config.encoder} does not fit them: choose another encoder"
        )
        lines.append(f"WARNING: [UNK] is {fit.unk_share:.1%} of all tokens of these texts; {remedy}")
    return lines
