"""Minimal pairs made from a workspace's own held-out documents, for corpora without a test set of their language.

The good sentence is one of the text; the bad one differs by two words that are exchanged, or by one word that no longer
agrees. The last three groups are for English; a sentence of another language is not taken for them, since it has none
of their words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pyarrow as pa

from pipelines.contract import storage
from pipelines.contract.errors import InputError
from pipelines.contract.manifest import Manifest
from training.data.ordering import keyed_permutation
from training.minimal_pairs.pairs import MinimalPairs

HELDOUT = "heldout"
"""The value of `data` that stands for these pairs."""

WORD_ORDER = "word_order"
AGREEING = {
    "verb_agreement": (("is", "are"), ("was", "were"), ("has", "have"), ("does", "do")),
    "determiner_agreement": (("this", "these"),),
    "article": (("a", "an"),),
}
"""Pairs of words of which a text has the right one: group -> pairs. A new group of this kind is a row."""
GROUPS = (WORD_ORDER, *AGREEING)

MIN_WORDS, MAX_WORDS = 5, 24
_LETTERS = re.compile(r"[^\W\d_]+")
_SEED = 0
"""The pairs of a corpus are the same in all runs."""

_OTHER = {
    group: {one: other for pair in pairs for one, other in (pair, pair[::-1])} for group, pairs in AGREEING.items()
}


def heldout_pairs(
    documents_directory: str,
    documents: Manifest,
    pairs_per_group: int,
    fits: Callable[[str], bool] = lambda _: True,
) -> MinimalPairs:
    """The first pairs of each group, in the order of the documents; a sentence is used once.

    Args:
        documents_directory, documents: the stage and its manifest.
        pairs_per_group: how many to take at most.
        fits: whether a model can take a sentence; one that it cannot take is passed over.

    Raises:
        InputError: the held-out documents have no sentence for any group, or cannot be read.
    """
    pairs = MinimalPairs([], [], [], [], [])
    counts = dict.fromkeys(GROUPS, 0)
    seen: set[str] = set()
    for place, sentence in _sentences(documents_directory, documents):
        words = sentence.split()
        good = " ".join(words)
        if not MIN_WORDS <= len(words) <= MAX_WORDS or good in seen:
            continue
        # The rarest first: most sentences have an order, and few have a demonstrative.
        for group in sorted(GROUPS, key=lambda name: counts[name]):
            if counts[group] >= pairs_per_group or (bad := damaged(words, group)) is None:
                continue
            if fits(good) and fits(bad):
                seen.add(good)
                counts[group] += 1
                for column, value in zip(
                    (pairs.good, pairs.bad, pairs.group, pairs.field, pairs.places),
                    (good, bad, group, "", place),
                    strict=True,
                ):
                    column.append(value)
            break
        if all(count >= pairs_per_group for count in counts.values()):
            break
    if not len(pairs):
        raise InputError(
            f"{documents_directory}: its held-out documents have no sentence of {MIN_WORDS} to {MAX_WORDS} words for "
            "minimal pairs; raise documents.heldout_share, or set pretraining.minimal_pairs.data to a file of pairs"
        )
    return pairs


def damaged(words: list[str], group: str) -> str | None:
    """The sentence with the fault of a group; None if it offers no place for it."""
    text = " ".join(words)
    for index in keyed_permutation(len(words), _SEED, "minimal pair", group, text):
        if (
            changed := _exchanged(words, index) if group == WORD_ORDER else _disagreeing(words, index, group)
        ) is not None:
            return " ".join(changed)
    return None


def _exchanged(words: list[str], index: int) -> list[str] | None:
    """Two neighbouring words within the sentence exchanged; punctuation stays in its place."""
    pair = words[index : index + 2]
    is_inside = index > 0 and len(pair) == 2
    if not is_inside or not all(_LETTERS.fullmatch(word) and word.islower() for word in pair) or pair[0] == pair[1]:
        return None
    return [*words[:index], pair[1], pair[0], *words[index + 2 :]]


def _disagreeing(words: list[str], index: int, group: str) -> list[str] | None:
    word = words[index]
    other = _OTHER[group].get(word.lower())
    # The next word shows which one is right, and so must be one.
    if other is None or index + 1 >= len(words) or not _LETTERS.match(words[index + 1]):
        return None
    other = other if word.islower() else other.capitalize()
    return [*words[:index], other, *words[index + 1 :]]


def _sentences(directory: str, documents: Manifest) -> Iterator[tuple[str, str]]:
    """Place and text of each held-out sentence."""
    for file in documents.files_of("heldout"):
        uri = storage.join(directory, file.name)
        try:
            with storage.open_seekable(uri) as source:
                reader = pa.ipc.open_file(source)
                for number in range(reader.num_record_batches):
                    for row, sentences in enumerate(reader.get_batch(number)["sentences"].to_pylist()):
                        for sentence in sentences:
                            yield f"{uri}: batch {number}, document {row}", sentence
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{uri}: not a readable Arrow file ({error}); rebuild the documents stage") from error
