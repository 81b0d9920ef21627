"""Small CoNLL files, in which labels depend on the sentence before, and what tests of tagging need for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from training.bert.packing import IntArray, PackedSequences, pack
from training.settings.model import ModelConfig
from training.settings.tagging import TaggingConfig
from training.tagging.problem import TaggingProblem
from training.tagging.schemes import Scheme, converted

FIRST_NAMES, SURNAMES = ("anna", "omar", "li", "eva"), ("smith", "novak", "brown", "jordan")
CITIES, COUNTRIES = ("paris", "oslo", "lima", "cairo"), ("peru", "jordan", "chad")
PLAIN = ("met", "in", "again", "about", "spoke", "was", "the", "news", "and", ".", "##s", "##a")
VOCABULARY = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *dict.fromkeys(FIRST_NAMES + SURNAMES + CITIES + COUNTRIES + PLAIN),
)
MODEL = ModelConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64
)

Rows = list[tuple[str, str]]


def document(generator: np.random.Generator) -> list[Rows]:
    """Two sentences, in which "jordan" is a person or a country; the second one alone is ambiguous."""

    def one_of(words: tuple[str, ...]) -> str:
        return str(generator.choice(words))

    is_person = bool(generator.random() < 0.5)
    if is_person:
        first = [(one_of(FIRST_NAMES), "B-PER"), ("jordan", "I-PER"), ("spoke", "O"), ("in", "O")]
        first += [(one_of(CITIES), "B-LOC")]
    else:
        first = [(one_of(FIRST_NAMES), "B-PER"), (one_of(SURNAMES[:3]), "I-PER"), ("was", "O"), ("in", "O")]
        first += [("jordan", "B-LOC")]
    second = [("jordan", "B-PER" if is_person else "B-LOC"), (one_of(("was", "again")), "O"), ("in", "O")]
    second += [("the", "O"), ("news", "O"), (".", "O")]
    return [[*first, (".", "O")], second]


def write_corpus(path: Path, num_documents: int, seed: int, scheme: Scheme) -> str:
    generator = np.random.default_rng(seed)
    lines: list[str] = []
    for _ in range(num_documents):
        lines += ["-DOCSTART- -X- O", ""]
        for rows in document(generator):
            labels = converted([label for _, label in rows], scheme)
            lines += [f"{word.title()} X {label}" for (word, _), label in zip(rows, labels, strict=True)]
            lines.append("")
    path.write_text("\n".join(lines))
    return str(path)


def tagging_settings(folder: Path, train: int, dev: int, **more: Any) -> TaggingConfig:
    """Settings for files of so many documents, and for the vocabulary, in a folder."""
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY))
    values = {
        "train_file": write_corpus(folder / "train.txt", train, 1, "iob1"),
        "dev_file": write_corpus(folder / "dev.txt", dev, 2, "bioes"),
        "max_seq_length": 32,
        "batch_size": 16,
    }
    return TaggingConfig.model_validate({**values, **more})


def packed_rows(problem: TaggingProblem, rows: IntArray) -> PackedSequences:
    text = problem.train_text
    tokens = np.concatenate([text.input_ids[row] for row in rows])
    return pack(tokens, text.lengths[rows], text.segment_b_starts[rows])
