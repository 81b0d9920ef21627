"""Write the tagging files of `features.toml` from plain text: the names in it, which its capital letters show.

    python flows/studies/mark_names.py science.txt rural.txt --output names

Text is lower-cased, so that a tagger must find the names by words and context. A word is part of a name if it has a
capital letter and does not begin its sentence; the pronoun "I" is not. Neighbouring words are one name. So labels need
no annotator; they also miss names at the beginning of sentences, for all variants alike. Every tenth sentence is one of
dev.txt; both files have the CoNLL columns word and IOB2 label.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator

_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)]*\s+(?=[\"'\u201c\u2018(]*[A-Z])")
_FEWEST_TOKENS, _MOST_TOKENS = 5, 50
_DEV_EVERY = 10


def sentences_of(lines: Iterable[str]) -> Iterator[list[str]]:
    """Tokens of each sentence that has neither few nor many of them."""
    for line in lines:
        for sentence in _SENTENCE_END.split(line.strip()):
            tokens = _TOKEN.findall(sentence)
            if _FEWEST_TOKENS <= len(tokens) <= _MOST_TOKENS:
                yield tokens


def labels_of(tokens: list[str]) -> list[str]:
    """An IOB2 label for each token of a sentence."""
    labels: list[str] = []
    begun = False
    for token in tokens:
        is_name = begun and token[0].isupper() and not re.match(r"I(?:['\u2019]|$)", token)
        continues = bool(labels) and labels[-1] != "O"
        labels.append("O" if not is_name else "I-NAME" if continues else "B-NAME")
        begun = begun or token[0].isalnum()
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: python flows/studies/mark_names.py science.txt --output names",
    )
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="files of cased text in UTF-8, a paragraph on a line")
    parser.add_argument("--output", required=True, help="directory for train.txt and dev.txt; it must not exist")
    parser.add_argument("--sentences", type=int, default=6_000, help="how many in all, at equal distances")
    parsed = parser.parse_args()
    if parsed.sentences < 1:
        parser.error(f"--sentences {parsed.sentences}: give at least 1")
    if os.path.lexists(parsed.output):
        parser.error(f"{parsed.output}: exists; name another directory")
    found: list[list[str]] = []
    for path in parsed.texts:
        try:
            with open(path, encoding="utf-8-sig") as stream:
                found += sentences_of(stream)
        except (OSError, UnicodeDecodeError) as error:
            parser.error(f"{path}: {error}; give files in UTF-8")
    chosen = found[:: max(1, len(found) // parsed.sentences)][: parsed.sentences]
    os.makedirs(parsed.output)
    names = 0
    with (
        open(os.path.join(parsed.output, "train.txt"), "x", encoding="utf-8") as train,
        open(os.path.join(parsed.output, "dev.txt"), "x", encoding="utf-8") as dev,
    ):
        for number, tokens in enumerate(chosen):
            labels = labels_of(tokens)
            names += labels.count("B-NAME")
            rows = "".join(f"{token.lower()} {label}\n" for token, label in zip(tokens, labels, strict=True))
            (train if number % _DEV_EVERY else dev).write(f"{rows}\n")
    print(f"{parsed.output}: {len(chosen):,} of {len(found):,} sentences, {names:,} names")


if __name__ == "__main__":
    main()
