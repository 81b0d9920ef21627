"""A small corpus and its three jobs, for tests that need a finished workspace."""

from __future__ import annotations

import random
from pathlib import Path

from pipelines import build_examples, shard_corpus, train_vocabulary

JOBS = (shard_corpus, train_vocabulary, build_examples)

RECIPE = """
[run]
name = "small"
workspace = "{workspace}"
workers = 1
[documents]
num_shards = 4
heldout_share = 0.2
[[documents.sources]]
inputs = ["{corpus}/*.txt"]
[vocabulary]
size = 300
[examples]
passes = 2
lengths = [{{max_seq_length = 32, max_predictions_per_seq = 5}}, {{max_seq_length = 64, max_predictions_per_seq = 10}}]
"""

MODEL = """
[model]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 32
max_position_embeddings = 64
"""
"""Section of a model that trains in milliseconds, to follow `RECIPE`."""

SYLLABLES = ["ka", "lo", "mi", "ren", "tas", "vu", "pel", "dor", "shi", "an"]


def write_corpus(directory: Path, num_documents: int = 60) -> None:
    generator = random.Random(3)
    directory.mkdir(parents=True)

    def sentence() -> str:
        words = ["".join(generator.choices(SYLLABLES, k=generator.randint(1, 3))) for _ in range(8)]
        return " ".join(words).capitalize() + "."

    for number in range(num_documents):
        text = "\n\n".join(" ".join(sentence() for _ in range(5)) for _ in range(4))
        (directory / f"{number:03d}.txt").write_text(text)
    (directory / "twin.txt").write_text((directory / "000.txt").read_text())
    (directory / "short.txt").write_text("No.")
    (directory / "latin1.txt").write_bytes("caf\xe9 con leche y algo de pan".encode("latin-1"))
    (directory / "empty.txt").write_text("")


def run_all(recipe: str, *arguments: str) -> None:
    for job in JOBS:
        job.run([recipe, *arguments])


def built_recipe(folder: Path) -> str:
    """Write a corpus and its recipe, and run the jobs in the workspace `expected` next to it; returns the recipe."""
    write_corpus(folder / "corpus")
    path = folder / "small.toml"
    path.write_text(RECIPE.format(workspace=folder / "expected", corpus=folder / "corpus"))
    run_all(str(path))
    return str(path)


def files_below(directory: Path) -> dict[str, bytes]:
    """Content by name of all files but locks and verification records, whose folders begin with a dot."""
    paths = (path for path in directory.rglob("*") if path.is_file() and not path.parent.name.startswith("."))
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}
